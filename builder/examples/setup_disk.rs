//! Writes a folder onto a set-up disk, to be timed against mcopy and cp: `setup_disk FOLDER IMAGE`.

use std::path::Path;

use no43_builder::setup_disk::SetupDisk;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, image] = arguments.as_slice() else { return Err("setup_disk FOLDER IMAGE".into()) };
    let mut disk = SetupDisk::new("NO43BENCH")?;
    disk.host_folder("", Path::new(folder))?;
    let written = disk.write(Path::new(image))?;
    println!(
        "{} files, {} bytes of clusters, image of {} bytes",
        written.files, written.content_bytes, written.bytes
    );
    Ok(())
}
