//! The processor time and the memory of servers, from /proc.

use std::{collections::HashMap, fs};

/// How many ticks the kernel counts in a second for user space; fixed on Linux.
const TICKS: f64 = 100.0;

/// Of each of `roots` and all their descendants: its number, and what its line in /proc says behind its name.
fn processes(roots: &[u32]) -> Vec<(u32, Vec<u64>)> {
    let mut processes = HashMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        // The second field is the command in parentheses, which may hold anything.
        let Some((_, rest)) = stat.rsplit_once(") ") else { continue };
        let numbers = rest.split(' ').map(|field| field.parse().unwrap_or(0));
        processes.insert(pid, numbers.collect::<Vec<u64>>());
    }
    let parent = |pid: u32| processes.get(&pid).and_then(|fields| fields.get(1)).copied();
    let belongs = |mut pid: u32| loop {
        if roots.contains(&pid) {
            return true;
        }
        match parent(pid) {
            Some(parent) => pid = parent as u32,
            None => return false,
        }
    };
    let all = processes.iter().filter(|(pid, _)| belongs(**pid));
    all.map(|(pid, fields)| (*pid, fields.clone())).collect()
}

/// The processor seconds, in user and system mode, that `roots` and all their descendants have used.
pub fn seconds(roots: &[u32]) -> f64 {
    let ticks = |fields: &[u64]| fields.get(11..13).map_or(0, |both| both.iter().sum::<u64>());
    processes(roots).iter().map(|(_, fields)| ticks(fields)).sum::<u64>() as f64 / TICKS
}

/// The KiB of memory of their own, that is of no file and not shared, that the descendants of `roots` have.
pub fn memory(roots: &[u32]) -> u64 {
    let own = |pid: u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
        line.trim().strip_suffix(" kB")?.parse::<u64>().ok()
    };
    let children = processes(roots).into_iter().filter(|(pid, _)| !roots.contains(pid));
    children.filter_map(|(pid, _)| own(pid)).sum()
}
