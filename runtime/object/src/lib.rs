//! Reads libbpf-compiled ELF objects: sections, maps, BTF, CO-RE.
