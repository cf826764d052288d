//! Tar: just enough of the ustar format to hand files, links and folders to `tar -x`, all owned by root.

use std::io::{self, Read, Write};

const BLOCK: usize = 512;
/// What the octal size field of ustar holds.
const LARGEST: u64 = 0o77_777_777_777;

/// Writes an archive; `finish` must be called at the end.
pub(crate) struct Writer<W: Write> {
    out: W,
}

/// What an entry is.
#[derive(Clone, Copy)]
enum Kind<'a> {
    File(u64),
    Link(&'a str),
    Folder,
}

impl<W: Write> Writer<W> {
    pub(crate) fn new(out: W) -> Self {
        Self { out }
    }

    /// A file of exactly `bytes` bytes; a source that is shorter or longer is an error.
    pub(crate) fn file(
        &mut self,
        path: &str,
        mode: u32,
        bytes: u64,
        source: &mut dyn Read,
    ) -> io::Result<()> {
        self.header(path, mode, Kind::File(bytes))?;
        let copied = io::copy(&mut source.take(bytes + 1), &mut self.out)?;
        if copied != bytes {
            return Err(io::Error::other(format!("{path} changed its length while it was read")));
        }
        let rest = (bytes % BLOCK as u64) as usize;
        if rest > 0 {
            self.out.write_all(&[0; BLOCK][rest..])?;
        }
        Ok(())
    }

    pub(crate) fn link(&mut self, path: &str, target: &str) -> io::Result<()> {
        self.header(path, 0o777, Kind::Link(target))
    }

    pub(crate) fn folder(&mut self, path: &str, mode: u32) -> io::Result<()> {
        self.header(path, mode, Kind::Folder)
    }

    pub(crate) fn finish(mut self) -> io::Result<W> {
        self.out.write_all(&[0; 2 * BLOCK])?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn header(&mut self, path: &str, mode: u32, kind: Kind<'_>) -> io::Result<()> {
        let relative = path.trim_start_matches('/');
        let (prefix, name) = split(relative).ok_or_else(|| too_long(path))?;
        let (flag, size, target) = match kind {
            Kind::File(size) if size > LARGEST => {
                return Err(io::Error::other(format!("{path} is larger than 8 GiB")));
            }
            Kind::File(size) => (b'0', size, ""),
            Kind::Link(target) if target.len() > 100 => return Err(too_long(target)),
            Kind::Link(target) => (b'2', 0, target),
            Kind::Folder => (b'5', 0, ""),
        };
        let mut header = [0_u8; BLOCK];
        let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, name.as_bytes());
        put(100, format!("{:07o}", mode & 0o7777).as_bytes());
        put(108, b"0000000\x000000000\0");
        put(124, format!("{size:011o}").as_bytes());
        put(136, b"00000000000\0        ");
        put(156, &[flag]);
        put(157, target.as_bytes());
        put(257, b"ustar\x0000");
        put(265, b"root");
        put(297, b"root");
        put(345, prefix.as_bytes());
        let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.out.write_all(&header)
    }
}

/// A path as ustar wants it: at most 155 bytes before a slash and 100 after it.
fn split(path: &str) -> Option<(&str, &str)> {
    if path.len() <= 100 {
        return Some(("", path));
    }
    path.match_indices('/')
        .map(|(at, _)| (&path[..at], &path[at + 1..]))
        .find(|(prefix, name)| prefix.len() <= 155 && name.len() <= 100)
}

fn too_long(path: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidFilename, format!("the path is too long for an archive: {path}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    fn listed(archive: &[u8]) -> String {
        let mut tar = Command::new("tar")
            .args(["--list", "--verbose", "--file", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        tar.stdin.take().unwrap().write_all(archive).unwrap();
        let output = tar.wait_with_output().unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn tar_reads_what_we_write() {
        let mut writer = Writer::new(Vec::new());
        let deep = format!("/{}/{}", "a".repeat(120), "b".repeat(90));
        writer.folder("/etc/demo", 0o755).unwrap();
        writer.file("/etc/demo/file", 0o4750, 700, &mut [7_u8; 700].as_slice()).unwrap();
        writer.link("/etc/demo/link", "../target").unwrap();
        writer.file(&deep, 0o644, 0, &mut io::empty()).unwrap();
        let archive = writer.finish().unwrap();
        assert_eq!(archive.len() % BLOCK, 0);
        insta::assert_snapshot!(listed(&archive).replace(&deep[1..], "DEEP"), @r"
        drwxr-xr-x root/root         0 1970-01-01 00:00 etc/demo
        -rwsr-x--- root/root       700 1970-01-01 00:00 etc/demo/file
        lrwxrwxrwx root/root         0 1970-01-01 00:00 etc/demo/link -> ../target
        -rw-r--r-- root/root         0 1970-01-01 00:00 DEEP
        ");
    }

    #[test]
    fn a_file_that_changes_its_length_is_an_error() {
        for length in [9, 11] {
            let error =
                Writer::new(Vec::new()).file("/x", 0o644, 10, &mut vec![0; length].as_slice()).unwrap_err();
            assert!(error.to_string().contains("changed its length"));
        }
        assert!(Writer::new(Vec::new()).folder(&"x".repeat(101), 0o755).is_err());
    }
}
