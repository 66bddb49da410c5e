//! What this process has in memory, and what the machine has left, as the system counts.

use std::path::Path;
use std::time::Duration;
use std::{fs, thread};

use crate::failure::{During, Failure};

/// The memory of this process that is resident now, in bytes. Exact, unlike the figure in `/proc/self/status`.
pub fn resident_bytes() -> Result<u64, Failure> {
    field_of("/proc/self/smaps_rollup", "Rss:")
}

/// As [`resident_bytes`], when it has not changed for two seconds, or after twenty: merging, and giving memory back, go on after
/// the last operation.
pub fn settled_resident_bytes() -> Result<u64, Failure> {
    const LOOKS_MAX: usize = 200;
    const EQUAL_LOOKS: usize = 20;
    const BETWEEN_LOOKS: Duration = Duration::from_millis(100);
    let (mut bytes, mut equal_looks) = (resident_bytes()?, 0);
    for _ in 0..LOOKS_MAX {
        thread::sleep(BETWEEN_LOOKS);
        let before = std::mem::replace(&mut bytes, resident_bytes()?);
        equal_looks = if before == bytes { equal_looks + 1 } else { 0 };
        if equal_looks == EQUAL_LOOKS {
            break;
        }
    }
    Ok(bytes)
}

/// The memory that could be taken without swapping, in bytes.
pub fn available_bytes() -> Result<u64, Failure> {
    field_of("/proc/meminfo", "MemAvailable:")
}

/// The room on the disk that holds `folder`, in bytes.
pub fn disk_free_bytes(folder: &Path) -> Result<u64, Failure> {
    let system = rustix::fs::statvfs(folder).during("asking for the room on the disk")?;
    Ok(system.f_bavail * system.f_frsize)
}

/// Whether `folder` lies in memory, so that a sync there means nothing.
pub fn is_in_memory(folder: &Path) -> bool {
    const TMPFS: u64 = 0x0102_1994;
    rustix::fs::statfs(folder).is_ok_and(|system| system.f_type as u64 == TMPFS)
}

/// A line such as `Rss:   1234 kB`.
fn field_of(file: &str, field: &str) -> Result<u64, Failure> {
    let text = fs::read_to_string(file).map_err(|error| Failure::during(format!("reading {file}"), error))?;
    let line = text.lines().find_map(|line| line.strip_prefix(field));
    let kib = line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kib.map(|kib| kib << 10).ok_or_else(|| Failure::new(format!("{file} has no {field}")))
}
