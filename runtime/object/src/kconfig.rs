//! The kernel's build configuration: `CONFIG_X=value` lines.

use std::collections::HashMap;
use std::io::Read;
use std::path::Path;
use std::sync::OnceLock;

/// Values of `CONFIG_*` by name, as text: `y`, `m`, `n`, a number, or a quoted string.
#[derive(Clone, Debug, Default)]
pub struct Kconfig {
    /// Empty until the machine's own is first asked for.
    values: OnceLock<HashMap<String, String>>,
    of_this_machine: bool,
}

impl Kconfig {
    /// Reads lines of `CONFIG_X=value`; of a name given twice the first counts. Other lines are ignored.
    pub fn parse(text: &str) -> Kconfig {
        let mut values = HashMap::new();
        for line in text.lines() {
            if let Some((name, value)) = line.split_once('=')
                && name.starts_with("CONFIG_")
                && !value.is_empty()
            {
                values.entry(name.to_owned()).or_insert_with(|| value.to_owned());
            }
        }
        Kconfig { values: values.into(), of_this_machine: false }
    }

    /// Reads a configuration file, gzipped or plain.
    pub fn load(path: &Path) -> std::io::Result<Kconfig> {
        let bytes = std::fs::read(path)?;
        let mut text = Vec::new();
        if bytes.starts_with(&[0x1f, 0x8b]) {
            flate2::read::GzDecoder::new(&bytes[..]).read_to_end(&mut text)?;
        } else {
            text = bytes;
        }
        Ok(Kconfig::parse(&String::from_utf8_lossy(&text)))
    }

    /// The running kernel's: `/boot/config-RELEASE`, else `/proc/config.gz`, read when first asked for a value. Empty
    /// when there is neither.
    pub fn of_this_machine() -> Kconfig {
        Kconfig { values: OnceLock::new(), of_this_machine: true }
    }

    fn values(&self) -> &HashMap<String, String> {
        self.values.get_or_init(|| if self.of_this_machine { machine_values() } else { HashMap::new() })
    }

    /// The value of `CONFIG_X`.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.values().get(name).map(String::as_str)
    }

    /// Sets a value; replaces what was there.
    pub fn set(&mut self, name: &str, value: &str) {
        self.values();
        if let Some(values) = self.values.get_mut() {
            values.insert(name.to_owned(), value.to_owned());
        }
    }

    /// True when nothing is configured.
    pub fn is_empty(&self) -> bool {
        self.values().is_empty()
    }
}

fn machine_values() -> HashMap<String, String> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let boot = format!("/boot/config-{}", release.trim());
    let found =
        [boot.as_str(), "/proc/config.gz"].iter().find_map(|path| Kconfig::load(Path::new(path)).ok());
    found.and_then(|kconfig| kconfig.values.into_inner()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_lines() {
        let kconfig = Kconfig::parse("# x\nCONFIG_A=y\nCONFIG_A=n\nCONFIG_B=\"a=b\"\nCONFIG_C=\nFOO=1\n");
        assert_eq!(kconfig.get("CONFIG_A"), Some("y"));
        assert_eq!(kconfig.get("CONFIG_B"), Some("\"a=b\""));
        assert_eq!(kconfig.get("CONFIG_C"), None);
        assert_eq!(kconfig.get("FOO"), None);
    }

    #[test]
    fn machine_configuration_when_there_is_one() {
        if !Path::new("/proc/config.gz").exists() {
            println!("skipped: no /proc/config.gz");
            return;
        }
        assert!(!Kconfig::load(Path::new("/proc/config.gz")).expect("readable").is_empty());
    }
}
