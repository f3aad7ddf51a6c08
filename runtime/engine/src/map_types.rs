//! The types of a map's keys and values.

use crate::types::{EncodeError, Literal, Types};
use crate::{Engine, EngineError};
use beeline_object::btf::value::Value;
use beeline_store::MapEntry;

/// What BTF says of a map.
#[derive(Debug)]
pub struct MapTypes {
    types: Option<Types>,
    key: u32,
    value: u32,
}

impl Engine {
    /// The types of a map. Without BTF there are none, and nothing is wrong with that.
    ///
    /// # Errors
    /// When the file with the BTF is there and cannot be read.
    pub fn map_types(&self, map: &MapEntry) -> Result<MapTypes, EngineError> {
        let btf = self.store().btf_of_map(map)?;
        let types = btf.and_then(|bytes| Types::parse(&bytes));
        Ok(MapTypes { types, key: map.file.btf_key_type_id(), value: map.file.btf_value_type_id() })
    }
}

impl MapTypes {
    /// All types of the object that made the map.
    pub fn types(&self) -> Option<&Types> {
        self.types.as_ref()
    }

    /// The type of a value, where one is known.
    pub fn value_type(&self) -> Option<u32> {
        (self.value != 0).then_some(self.value)
    }

    /// A key by its type. The key of global data has none, and is a number.
    pub fn format_key(&self, key: &[u8]) -> Option<Value> {
        match (self.key, <[u8; 4]>::try_from(key)) {
            (0, Ok(index)) if self.value != 0 => Some(Value::Unsigned(u32::from_ne_bytes(index).into())),
            (0, _) => None,
            (id, _) => self.types.as_ref()?.format(id, key),
        }
    }

    /// A value (of one CPU) by its type.
    pub fn format_value(&self, value: &[u8]) -> Option<Value> {
        self.types.as_ref()?.format(self.value, value)
    }

    /// The bytes of a key; `None` when its type is not known.
    pub fn encode_key(&self, literal: &Literal, size: u32) -> Option<Result<Vec<u8>, EncodeError>> {
        self.encode(self.key, literal, size)
    }

    /// The bytes of a value (of one CPU); `None` when its type is not known.
    pub fn encode_value(&self, literal: &Literal, size: u32) -> Option<Result<Vec<u8>, EncodeError>> {
        self.encode(self.value, literal, size)
    }

    fn encode(&self, id: u32, literal: &Literal, size: u32) -> Option<Result<Vec<u8>, EncodeError>> {
        let types = self.types.as_ref().filter(|types| id != 0 && types.size_of(id) == Some(size))?;
        Some(types.encode(id, literal, size))
    }
}
