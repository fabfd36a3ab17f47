//! The processor time of servers, from /proc.

use std::{collections::HashMap, fs};

/// How many ticks the kernel counts in a second for user space; fixed on Linux.
const TICKS: f64 = 100.0;

/// The processor seconds, in user and system mode, that `roots` and all their descendants have used.
pub fn seconds(roots: &[u32]) -> f64 {
    let mut processes = HashMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        // The second field is the command in parentheses, which may hold anything.
        let Some((_, rest)) = stat.rsplit_once(") ") else { continue };
        let fields: Vec<&str> = rest.split(' ').collect();
        let number = |i: usize| fields.get(i).and_then(|f| f.parse::<u64>().ok()).unwrap_or(0);
        processes.insert(pid, (number(1) as u32, number(11) + number(12)));
    }
    let belongs = |mut pid: u32| loop {
        if roots.contains(&pid) {
            return true;
        }
        match processes.get(&pid) {
            Some(&(parent, _)) => pid = parent,
            None => return false,
        }
    };
    let ticks: u64 = processes.iter().filter(|(p, _)| belongs(**p)).map(|(_, (_, t))| t).sum();
    ticks as f64 / TICKS
}
