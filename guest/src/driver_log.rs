//! Windows' own log of driver installations, `setupapi.dev.log`: which INF was chosen for a device, from where, and how it ended.
//!
//! Read by its headings and keys, which Windows never translates (Microsoft, "Format of a Text Log Section"; excerpts in Microsoft's
//! own articles). What is not understood is passed over: the log has many more lines than these.

use crate::protocol::DriverInstall;

/// The end of the log that is read: a Windows of some years has 50 MB.
pub const LOG_TAIL: u64 = 8 << 20;

/// Installations that are kept, the newest ones.
const MOST: usize = 32;
/// Candidates of one installation.
const MOST_CANDIDATES: usize = 16;
/// Characters of one value.
const LONGEST: usize = 300;

/// Installations of PCI devices in the log's text, oldest first. The text may begin in the middle of a line.
#[must_use]
pub fn installs(log: &[u8]) -> Vec<DriverInstall> {
    let mut reader = Reader::default();
    for line in log.split(|byte| *byte == b'\n') {
        reader.line(String::from_utf8_lossy(&line[..line.len().min(4096)]).trim());
    }
    reader.end();
    let first = reader.done.len().saturating_sub(MOST);
    reader.done.split_off(first)
}

/// A driver that Windows considered.
#[derive(Default)]
struct Node {
    inf: String,
    version: Option<String>,
    section: Option<String>,
}

#[derive(Default)]
struct Reader {
    done: Vec<DriverInstall>,
    open: Option<DriverInstall>,
    nodes: Vec<Node>,
    /// Lines belong to the driver that was chosen, not to one that was only considered.
    chosen: bool,
}

impl Reader {
    fn line(&mut self, line: &str) {
        if let Some(heading) = line.strip_prefix(">>>").map(str::trim) {
            match heading.strip_prefix("Section start ") {
                Some(time) => self.value(|install| install.started = Some(cut(time))),
                None => self.begin(heading),
            }
        } else if let Some(rest) = line.strip_prefix("<<<").map(str::trim) {
            if let Some(status) = rest.strip_prefix("[Exit status:").and_then(|rest| rest.strip_suffix(']')) {
                let status = cut(status);
                self.value(|install| {
                    install.success = Some(status == "SUCCESS");
                    install.status = Some(status);
                });
                self.end();
            }
        } else if self.open.is_some() {
            // After the flag of severity and the four letters of the component.
            let text = line.trim_start_matches('!').trim_start();
            self.inside(text.split_once(':').map_or(text, |(_, text)| text).trim());
        }
    }

    /// `[Device Install (Hardware initiated) - PCI\VEN_…]`, also `[Setup online Device Install …]`.
    fn begin(&mut self, heading: &str) {
        self.end();
        let heading = heading.trim_start_matches('[').trim_end_matches(']');
        let Some((what, device)) = heading.split_once(" - ") else { return };
        let is_pci = device.get(..4).is_some_and(|start| start.eq_ignore_ascii_case(r"PCI\"));
        if what.contains("Device Install") && is_pci {
            self.open = Some(DriverInstall { device: cut(device), ..DriverInstall::default() });
        }
    }

    fn inside(&mut self, text: &str) {
        if text.starts_with("Created Driver Node") {
            self.chosen = false;
            if self.nodes.len() < MOST_CANDIDATES {
                self.nodes.push(Node::default());
            }
            return;
        }
        if text.starts_with("Selected Driver") || text.starts_with("Selected driver") {
            self.chosen = true;
            return;
        }
        if let Some(path) = text.strip_prefix("Driver INF Path:") {
            let inf = file_name(path);
            return self.value(|install| {
                install.inf.get_or_insert(inf);
            });
        }
        let Some((key, value)) = text.split_once(" - ") else { return };
        let value = cut(value);
        match (key.trim(), self.chosen) {
            ("InfName", false) => self.node(|node| node.inf = value),
            ("Section", false) => self.node(|node| node.section = Some(value)),
            ("Version" | "DrvVersion", false) => self.node(|node| node.version = Some(value)),
            ("InfFile", true) => self.value(|install| {
                let name = file_name(&value);
                if name.to_ascii_lowercase().starts_with("oem") {
                    install.inf = Some(name);
                } else {
                    install.original_inf = Some(name);
                }
                install.from = Some(value);
            }),
            ("Section", true) => self.value(|install| install.section = Some(value)),
            ("Version" | "DrvVersion", true) => self.value(|install| install.version = Some(value)),
            _ => {}
        }
    }

    fn value(&mut self, set: impl FnOnce(&mut DriverInstall)) {
        if let Some(open) = &mut self.open {
            set(open);
        }
    }

    fn node(&mut self, set: impl FnOnce(&mut Node)) {
        if let Some(node) = self.nodes.last_mut() {
            set(node);
        }
    }

    /// The chosen driver has its version in the list of those that were considered.
    fn end(&mut self) {
        let nodes = std::mem::take(&mut self.nodes);
        self.chosen = false;
        let Some(mut install) = self.open.take() else { return };
        let names = |node: &&Node| {
            let name = file_name(&node.inf);
            [&install.inf, &install.original_inf]
                .into_iter()
                .flatten()
                .any(|inf| inf.eq_ignore_ascii_case(&name))
        };
        if let Some(node) = nodes.iter().find(names).or(nodes.first().filter(|_| nodes.len() == 1)) {
            install.version = install.version.or_else(|| node.version.clone());
            install.section = install.section.or_else(|| node.section.clone());
            install.original_inf = install.original_inf.or_else(|| Some(file_name(&node.inf)));
        }
        install.candidates = nodes.into_iter().map(|node| node.inf).filter(|inf| !inf.is_empty()).collect();
        if self.done.len() >= 2 * MOST {
            self.done.drain(..MOST);
        }
        self.done.push(install);
    }
}

fn file_name(path: &str) -> String {
    cut(path.rsplit('\\').next().unwrap_or(path))
}

/// Windows itself does not write more, and a guest may write anything.
fn cut(text: &str) -> String {
    text.trim().trim_matches(['[', ']']).chars().filter(|c| !c.is_control()).take(LONGEST).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Put together from excerpts in Microsoft's articles.
    const LOG: &str = r"cut in the middle
>>>  [Device Install (Hardware initiated) - USB\VID_046D&PID_C534\5&bd89ed7&0&2]
>>>  Section start 2026/01/20 17:26:03.547
<<<  Section end 2026/01/20 17:26:03.700
<<<  [Exit status: SUCCESS]
>>>  [Device Install (Hardware initiated) - PCI\VEN_10DE&DEV_2484&SUBSYS_146B10DE&REV_A1\4&1A2B&0&0008]
>>>  Section start 2026/01/20 17:27:00.000
     dvi: {Build Driver List} 17:27:00.100
     dvi:      Created Driver Node:
     dvi:           HardwareID   - PCI\VEN_10DE&DEV_2484
     dvi:           InfName      - C:\Windows\System32\DriverStore\FileRepository\nv_dispi.inf_amd64_1\nv_dispi.inf
     dvi:           Section      - Section003
     dvi:           DrvDate      - 03/17/2021
     dvi:           Version      - 27.21.14.6611
     dvi:      Created Driver Node:
     dvi:           InfName      - C:\Windows\System32\DriverStore\FileRepository\display.inf_amd64_2\display.inf
     dvi:           Version      - 10.0.19041.1
     dvi:           {Select Best Driver}
     dvi:                Selected Driver:
     dvi:                     Description - NVIDIA GeForce RTX 3070
     dvi:                     InfFile     - c:\windows\system32\driverstore\filerepository\nv_dispi.inf_amd64_1\nv_dispi.inf
     dvi:                     Section     - Section003
     dvi:           {Select Best Driver - exit(0x00000000)}
     ndv:      Driver INF Path: C:\Windows\INF\oem4.inf
<<<  Section end 2026/01/20 17:27:10.000
<<<  [Exit status: SUCCESS]
>>>  [Setup online Device Install (Hardware initiated) - pci\ven_10de&dev_2484\4&1]
>>>  Section start 2026/01/21 08:00:00.000
!    dvi:      Selecting driver failed(0xe0000228)
<<<  Section end 2026/01/21 08:00:01.000
<<<  [Exit status: FAILURE(0xe0000228)]
";

    #[test]
    fn the_chosen_inf_its_version_and_the_end_are_found() {
        let found = installs(LOG.as_bytes());
        assert_eq!(found.len(), 2, "{found:#?}");
        insta::assert_snapshot!(serde_json::to_string_pretty(&found[0]).unwrap(), @r#"
        {
          "device": "PCI\\VEN_10DE&DEV_2484&SUBSYS_146B10DE&REV_A1\\4&1A2B&0&0008",
          "started": "2026/01/20 17:27:00.000",
          "inf": "oem4.inf",
          "original_inf": "nv_dispi.inf",
          "from": "c:\\windows\\system32\\driverstore\\filerepository\\nv_dispi.inf_amd64_1\\nv_dispi.inf",
          "version": "27.21.14.6611",
          "section": "Section003",
          "candidates": [
            "C:\\Windows\\System32\\DriverStore\\FileRepository\\nv_dispi.inf_amd64_1\\nv_dispi.inf",
            "C:\\Windows\\System32\\DriverStore\\FileRepository\\display.inf_amd64_2\\display.inf"
          ],
          "success": true,
          "status": "SUCCESS"
        }
        "#);
        assert_eq!(found[1].device, r"pci\ven_10de&dev_2484\4&1");
        assert_eq!(
            (found[1].success, found[1].status.as_deref()),
            (Some(false), Some("FAILURE(0xe0000228)"))
        );
    }

    #[test]
    fn only_the_newest_are_kept() {
        let one =
            |n: usize| format!(">>>  [Device Install (x) - PCI\\VEN_{n:04}]\n<<<  [Exit status: SUCCESS]\n");
        let found = installs((0..500).map(one).collect::<String>().as_bytes());
        assert_eq!((found.len(), found[31].device.as_str()), (32, r"PCI\VEN_0499"));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(text in "(>>>|<<<| |\\[|\\]|Device Install|PCI\\\\| - |Created Driver Node|Selected Driver|InfName|InfFile|Section|Version|Exit status:|\n|[a-z\\\\]{0,5}){0,60}") {
            for install in installs(text.as_bytes()) {
                prop_assert!(install.candidates.len() <= 16 && install.device.chars().count() <= 300);
            }
        }

        #[test]
        fn any_mutation_is_read(at in proptest::collection::vec((0_usize..2400, any::<u8>()), 0..40)) {
            let mut bytes = LOG.as_bytes().to_vec();
            for (at, value) in at {
                let at = at % bytes.len();
                bytes[at] = value;
            }
            let _ = installs(&bytes);
        }
    }
}
