//! KVM or TCG: chosen by whether a vCPU really ran code, never by whether `/dev/kvm` opens.

use no43_host::KvmVerdict;
use serde::{Deserialize, Serialize};

/// What runs the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Accel {
    /// The host's processor, by KVM.
    Kvm,
    /// QEMU's translator, one host thread for each vCPU. 10 to 30 times slower.
    Tcg,
}

impl Accel {
    /// The value of `-accel`.
    pub fn argument(self) -> &'static str {
        match self {
            Accel::Kvm => "kvm",
            Accel::Tcg => "tcg,thread=multi",
        }
    }

    /// The CPU model with everything that this accelerator can do.
    pub fn default_cpu(self) -> &'static str {
        match self {
            Accel::Kvm => "host",
            Accel::Tcg => "max",
        }
    }
}

/// The accelerator for this host, and a warning to show when it is not KVM.
pub fn choose(verdict: &KvmVerdict) -> (Accel, Option<String>) {
    if verdict.is_usable() {
        return (Accel::Kvm, None);
    }
    let warning = format!("{verdict}; using TCG, QEMU's translator, which is 10 to 30 times slower");
    (Accel::Tcg, Some(warning))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_vcpu_that_ran_gives_kvm() {
        let usable = KvmVerdict::Usable { module: "kvm_amd".into(), ms: 270 };
        assert_eq!(choose(&usable), (Accel::Kvm, None));
        let broken = KvmVerdict::Broken { module: "kvm_pvm".into(), what: "internal error".into() };
        let (accel, warning) = choose(&broken);
        assert_eq!(accel, Accel::Tcg);
        assert!(warning.is_some_and(|text| text.contains("kvm_pvm") && text.contains("TCG")));
    }
}
