//! One row of a corpus, read.

use super::maps::{MapError, MapSpec};
use super::types;
use crate::hex::{self, HexError};
use beeline_isa::Insn;
use beeline_isa::opcode::{LD_IMM64, PSEUDO_MAP_FD};
use beeline_object::section_table::PROG_TYPE_NAMES;
use beeline_verifier::{ProgType, Program};
use serde_json::Value;
use std::collections::BTreeMap;

/// A row that cannot be understood.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RowError {
    /// A key is missing or of the wrong type.
    #[error("{0:?} is missing or not what it should be")]
    Key(&'static str),
    /// Bytes that are none.
    #[error("{key}: {source}")]
    Hex {
        /// Which key.
        key: &'static str,
        /// What is wrong with them.
        source: HexError,
    },
    /// No such program type.
    #[error("unknown program type {0}")]
    ProgType(String),
    /// A map.
    #[error(transparent)]
    Map(#[from] MapError),
    /// A fixup beyond the program.
    #[error("no instruction {0} to take a map")]
    Fixup(u64),
    /// Types come with it, which rows cannot bring.
    #[error("programs with BTF are not supported in a corpus")]
    Btf,
}

/// A program and what surrounds it.
#[derive(Clone, Debug)]
pub struct Row {
    /// The program, with its maps as the verifier knows them.
    pub program: Program,
    /// How to make the maps, in the program's order.
    pub maps: Vec<MapSpec>,
    /// `BPF_F_STRICT_ALIGNMENT`.
    pub strict_alignment: bool,
    /// `bpf_attr.log_level`.
    pub log_level: u32,
    /// The packet, of the programs that get one.
    pub packet: Vec<u8>,
    /// The first bytes of the context, of programs that get none of their own.
    pub context: Vec<u8>,
    /// Run it.
    pub run: bool,
}

/// Bytes of a packet when none is given: those of the kernel's suite.
const PACKET_LEN: usize = 64;

/// A packet has at least an Ethernet header.
const PACKET_LEN_MIN: usize = 14;

const STRICT_ALIGNMENT: u64 = 1;
const SLEEPABLE: u64 = 16;

impl Row {
    /// Reads a row.
    ///
    /// # Errors
    /// [`RowError`].
    pub fn parse(row: &Value) -> Result<Row, RowError> {
        if row.get("btf_types").is_some() || row.get("func_info").is_some() {
            return Err(RowError::Btf);
        }
        let text = row["insns"].as_str().ok_or(RowError::Key("insns"))?;
        let mut insns = hex::instructions(text).map_err(|source| RowError::Hex { key: "insns", source })?;
        let prog_type = prog_type(&row["prog_type"])?;
        let maps = place_maps(row, &mut insns)?;
        let flags = number(row, "prog_flags")?;
        let program = Program {
            prog_type,
            expected_attach_type: number(row, "expected_attach_type")? as u32,
            gpl_compatible: is_gpl_compatible(row["license"].as_str().unwrap_or("GPL")),
            // The kernel takes only sleepable programs of this type.
            sleepable: flags & SLEEPABLE != 0 || prog_type == ProgType::SYSCALL,
            insns,
            maps: maps.iter().map(MapSpec::info).collect(),
            types: Some(types::kernel_types()),
            ..Program::default()
        };
        Ok(Row {
            program,
            maps,
            strict_alignment: flags & STRICT_ALIGNMENT != 0,
            log_level: number(row, "log_level")? as u32,
            packet: packet(row)?,
            context: bytes(row, "ctx")?.unwrap_or_default(),
            run: row["run"] != Value::Bool(false),
        })
    }
}

/// Lets each instruction that takes a map refer to it by index.
fn place_maps(row: &Value, insns: &mut [Insn]) -> Result<Vec<MapSpec>, RowError> {
    let (mut maps, mut named) = (Vec::new(), BTreeMap::new());
    for (name, spec) in row["maps"].as_object().into_iter().flatten() {
        named.insert(name.clone(), maps.len());
        maps.push(MapSpec::parse(spec)?);
    }
    for (name, places) in row["fixups"].as_object().into_iter().flatten() {
        let index = match named.get(name) {
            Some(&index) => index,
            None => {
                maps.push(MapSpec::of_kind(name).ok_or_else(|| MapError::Kind(name.clone()))?);
                maps.len() - 1
            }
        };
        for place in places.as_array().ok_or(RowError::Key("fixups"))? {
            let place = place.as_u64().ok_or(RowError::Key("fixups"))?;
            let insn = usize::try_from(place).ok().and_then(|at| insns.get_mut(at));
            let insn = insn.ok_or(RowError::Fixup(place))?;
            insn.imm = index as i32;
            if insn.code == LD_IMM64 && insn.src() == 0 {
                *insn = insn.with_src(PSEUDO_MAP_FD);
            }
        }
    }
    Ok(maps)
}

fn prog_type(value: &Value) -> Result<ProgType, RowError> {
    let number = match value {
        Value::Null => 1,
        Value::Number(_) => value.as_u64().ok_or(RowError::Key("prog_type"))?,
        Value::String(name) => {
            let known = PROG_TYPE_NAMES.iter().position(|known| known == name);
            known.ok_or_else(|| RowError::ProgType(name.clone()))? as u64
        }
        _ => return Err(RowError::Key("prog_type")),
    };
    Ok(ProgType(u32::try_from(number.max(1)).map_err(|_| RowError::ProgType(number.to_string()))?))
}

fn number(row: &Value, key: &'static str) -> Result<u64, RowError> {
    match row.get(key) {
        None | Some(Value::Null) => Ok(0),
        Some(value) => value.as_u64().ok_or(RowError::Key(key)),
    }
}

fn bytes(row: &Value, key: &'static str) -> Result<Option<Vec<u8>>, RowError> {
    match row[key].as_str() {
        Some(text) => Ok(Some(hex::bytes(text).map_err(|source| RowError::Hex { key, source })?)),
        None => Ok(None),
    }
}

fn packet(row: &Value) -> Result<Vec<u8>, RowError> {
    let mut packet = bytes(row, "pkt")?.unwrap_or_else(|| vec![0; PACKET_LEN]);
    if packet.len() < PACKET_LEN_MIN {
        packet.resize(PACKET_LEN_MIN, 0);
    }
    Ok(packet)
}

/// `license_is_gpl_compatible` of the kernel (`include/linux/license.h`).
fn is_gpl_compatible(license: &str) -> bool {
    let names =
        ["GPL", "GPL v2", "GPL and additional rights", "Dual BSD/GPL", "Dual MIT/GPL", "Dual MPL/GPL"];
    names.contains(&license)
}
