//! The lab host's disk and kernel, as the builder made them.

use std::path::PathBuf;

use no43_builder::image::Image;
use no43_machine::spec::DirectKernel;

use crate::error::LabError;

/// What the lab's kernel command line must hold, with the reason. The image's own comes first.
const NEEDED: &[&str] = &[
    "console=ttyS0",  // its messages are the evidence of a lab fault
    "intel_iommu=on", // IOMMU groups
    "iommu=pt",       // the host's own devices are not slowed down
    "panic=-1",       // a panic ends QEMU instead of looking like a hang
    "no_timer_check", // on a busy machine the emulated timer fails that check, and the kernel panics after a second
    "nohibernate",    // nothing may make it sleep
];

/// An image that can be a lab host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabHost {
    /// The image's key.
    pub key: String,
    /// Its qcow2 disk, never written.
    pub disk: PathBuf,
    /// Kernel, initial RAM file system and command line.
    pub kernel: DirectKernel,
}

impl LabHost {
    /// Takes an image from the store.
    ///
    /// # Errors
    /// [`LabError::Image`] if it has no kernel of its own beside the disk.
    pub fn of(image: &Image) -> Result<LabHost, LabError> {
        let key = image.manifest.key.to_string();
        let direct = image.direct_kernel().ok_or_else(|| LabError::Image {
            key: key.clone(),
            why: "it has no kernel beside its disk; build recipes/lab-host.toml".to_owned(),
        })?;
        let kernel =
            DirectKernel { kernel: direct.kernel, initrd: Some(direct.initrd), cmdline: direct.command_line };
        Ok(LabHost { key, disk: image.disk(), kernel })
    }

    /// Kernel, initrd, and the image's command line with what the lab needs added to it.
    pub(crate) fn boot(&self) -> DirectKernel {
        let own: Vec<&str> = self.kernel.cmdline.split_whitespace().collect();
        let given = |word: &str| own.iter().any(|own| own.split(',').next() == Some(word));
        let missing = NEEDED.iter().filter(|word| !given(word));
        let cmdline = own.iter().chain(missing).copied().collect::<Vec<_>>().join(" ");
        DirectKernel { cmdline, ..self.kernel.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_gets_what_the_lab_needs_once() {
        let kernel = DirectKernel {
            kernel: "k".into(),
            initrd: None,
            cmdline: "root=/dev/vda  iommu=pt console=ttyS0,115200".to_owned(),
        };
        let host = LabHost { key: "k".to_owned(), disk: "d".into(), kernel };
        assert_eq!(
            host.boot().cmdline,
            "root=/dev/vda iommu=pt console=ttyS0,115200 intel_iommu=on panic=-1 no_timer_check nohibernate"
        );
    }
}
