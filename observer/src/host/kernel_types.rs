//! The running kernel's type information, read once per process.

use super::btf::{self, BtfError};
use super::offsets;
use observer_ebpf::Offsets;
use std::path::Path;
use std::sync::OnceLock;
use std::{fs, io};
use thiserror::Error;

/// Where the kernel shows its BTF.
pub const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// Why the kernel's types are not known.
#[derive(Debug, Error)]
pub enum TypesError {
    /// No BTF.
    #[error("cannot read {VMLINUX}: {0}; the kernel needs CONFIG_DEBUG_INFO_BTF=y, and /sys must be mounted")]
    Read(#[source] io::Error),
    /// BTF without what observer needs.
    #[error(transparent)]
    Btf(#[from] BtfError),
    /// The loader's own reader refuses it.
    #[error("the kernel's BTF is not understood by the loader: {0}; please report this kernel")]
    Loader(#[source] aya::BtfError),
}

/// Field offsets, and the types as the loader wants them.
#[derive(Debug)]
pub struct KernelTypes {
    /// Byte offsets of the fields observer reads.
    pub offsets: Offsets,
    /// For finding attach points.
    pub btf: aya::Btf,
}

impl KernelTypes {
    /// The running kernel's types; read on first use and kept.
    pub fn get() -> Result<&'static Self, &'static TypesError> {
        static TYPES: OnceLock<Result<KernelTypes, TypesError>> = OnceLock::new();
        TYPES.get_or_init(|| Self::read(Path::new(VMLINUX))).as_ref()
    }

    fn read(path: &Path) -> Result<Self, TypesError> {
        let data = fs::read(path).map_err(TypesError::Read)?;
        let offsets = offsets::resolve(&btf::Btf::parse(&data)?)?;
        let btf = aya::Btf::parse(&data, aya::Endianness::default()).map_err(TypesError::Loader)?;
        Ok(Self { offsets, btf })
    }
}
