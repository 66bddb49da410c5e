//! What clients ask about the server itself.

use std::fmt::Write;

use lockgate_net::resp::{Reply, Request};

use super::{Commands, arity};

/// Name, arity as Redis counts it (negative: at least), first key, last key, step; and whether it writes.
const COMMANDS: &[(&str, i64, i64, i64, i64, bool)] = &[
    ("get", 2, 1, 1, 1, false),
    ("set", -3, 1, 1, 1, true),
    ("setnx", 3, 1, 1, 1, true),
    ("getdel", 2, 1, 1, 1, true),
    ("getex", -2, 1, 1, 1, true),
    ("expire", -3, 1, 1, 1, true),
    ("pexpire", -3, 1, 1, 1, true),
    ("expireat", -3, 1, 1, 1, true),
    ("pexpireat", -3, 1, 1, 1, true),
    ("persist", 2, 1, 1, 1, true),
    ("ttl", 2, 1, 1, 1, false),
    ("pttl", 2, 1, 1, 1, false),
    ("expiretime", 2, 1, 1, 1, false),
    ("pexpiretime", 2, 1, 1, 1, false),
    ("del", -2, 1, -1, 1, true),
    ("unlink", -2, 1, -1, 1, true),
    ("exists", -2, 1, -1, 1, false),
    ("mget", -2, 1, -1, 1, false),
    ("dbsize", 1, 0, 0, 0, false),
    ("ping", -1, 0, 0, 0, false),
    ("echo", 2, 0, 0, 0, false),
    ("hello", -1, 0, 0, 0, false),
    ("select", 2, 0, 0, 0, false),
    ("client", -2, 0, 0, 0, false),
    ("info", -1, 0, 0, 0, false),
    ("command", -1, 0, 0, 0, false),
    ("config", -2, 0, 0, 0, false),
    ("cluster", -2, 0, 0, 0, false),
    ("lockgate", -2, 0, 0, 0, false),
    ("waitaof", 4, 0, 0, 0, false),
    ("readonly", 1, 0, 0, 0, false),
    ("readwrite", 1, 0, 0, 0, false),
    ("quit", -1, 0, 0, 0, false),
];

impl Commands {
    /// `HELLO [2 [SETNAME name]]`.
    pub(super) fn hello(&self, request: &Request<'_>, reply: &mut Reply) -> Result<(), String> {
        let args = request.args();
        if args.get(1).is_some_and(|version| *version != b"2") {
            return Err("NOPROTO unsupported protocol version".into());
        }
        for option in args.iter().skip(2) {
            if option.eq_ignore_ascii_case(b"AUTH") {
                return Err("ERR AUTH is not supported".into());
            }
        }
        reply.map(7);
        for (key, value) in [("server", "lockgate"), ("version", env!("CARGO_PKG_VERSION"))] {
            reply.bulk(key.as_bytes());
            reply.bulk(value.as_bytes());
        }
        reply.bulk(b"proto");
        reply.integer(2);
        reply.bulk(b"id");
        reply.integer(1);
        for (key, value) in [("mode", "cluster"), ("role", self.role())] {
            reply.bulk(key.as_bytes());
            reply.bulk(value.as_bytes());
        }
        reply.bulk(b"modules");
        reply.array(0);
        Ok(())
    }

    fn role(&self) -> &'static str {
        match self.node.shard() {
            Some((_, false)) => "replica",
            _ => "master",
        }
    }

    /// `INFO [section ...]`.
    pub(super) fn info(&self, request: &Request<'_>, reply: &mut Reply) -> Result<(), String> {
        let wanted: Vec<String> =
            request.args()[1..].iter().map(|arg| String::from_utf8_lossy(arg).to_lowercase()).collect();
        let everything = wanted.is_empty()
            || wanted.iter().any(|w| matches!(w.as_str(), "all" | "default" | "everything"));
        let mut text = String::new();
        for (name, body) in self.sections() {
            if everything || wanted.iter().any(|section| *section == name.to_lowercase()) {
                // Writing to a String cannot fail.
                let _ = write!(text, "# {name}\r\n{body}\r\n");
            }
        }
        reply.bulk(text.as_bytes());
        Ok(())
    }

    fn sections(&self) -> [(&'static str, String); 5] {
        let stats = self.node.engine().stats();
        let uptime_s = lockgate_runtime::unix_ms().saturating_sub(self.started_ms) / 1_000;
        let version = env!("CARGO_PKG_VERSION");
        let server = format!(
            // Clients compare redis_version to choose features.
            "redis_version:7.0.0\r\nlockgate_version:{version}\r\nredis_mode:cluster\r\nuptime_in_seconds:{uptime_s}\r\nprocess_id:{}\r\n",
            std::process::id()
        );
        let memory = format!(
            "used_memory:{}\r\nused_memory_payload:{}\r\nmaxmemory:{}\r\nmem_live_ratio:{:.3}\r\n\
             mem_write_amplification:{:.2}\r\n",
            stats.memory_used_bytes,
            stats.live_bytes,
            stats.memory_max_bytes,
            stats.live_ratio(),
            stats.compaction.write_amplification()
        );
        let logs: String = stats
            .cores
            .iter()
            .enumerate()
            .map(|(core, log)| {
                let (appended, written, synced) = (log.log_appended.0, log.log_written.0, log.log_synced.0);
                let full = u8::from(log.log_disk_full);
                format!(
                    "log{core}:appended={appended},written={written},synced={synced},disk_full={full}\r\n"
                )
            })
            .collect();
        let replication = format!("role:{}\r\n", self.role());
        let (keys, expires) = (self.node.keyspace(0).len(), self.node.keyspace(0).len_with_deadline());
        let keyspace = match keys {
            0 => String::new(),
            _ => format!("db0:keys={keys},expires={expires},avg_ttl=0\r\n"),
        };
        [
            ("Server", server),
            ("Memory", memory),
            ("Persistence", format!("loading:0\r\n{logs}")),
            ("Replication", replication),
            ("Keyspace", format!("{keyspace}cluster_enabled:1\r\n")),
        ]
    }
}

/// `COMMAND [COUNT|DOCS|INFO name ...]`.
pub(super) fn command(request: &Request<'_>, reply: &mut Reply) -> Result<(), String> {
    match request.args().get(1) {
        None => {
            reply.array(COMMANDS.len());
            COMMANDS.iter().for_each(|row| describe(row, reply));
        }
        Some(sub) if sub.eq_ignore_ascii_case(b"COUNT") => reply.integer(COMMANDS.len() as i64),
        Some(sub) if sub.eq_ignore_ascii_case(b"DOCS") => reply.map(0),
        Some(sub) if sub.eq_ignore_ascii_case(b"INFO") => {
            let names = &request.args()[2..];
            reply.array(names.len());
            for name in names {
                match COMMANDS.iter().find(|row| row.0.as_bytes().eq_ignore_ascii_case(name)) {
                    Some(row) => describe(row, reply),
                    None => reply.null_array(),
                }
            }
        }
        Some(sub) => {
            return Err(format!(
                "ERR unknown subcommand '{}'. Try COMMAND COUNT.",
                String::from_utf8_lossy(sub)
            ));
        }
    }
    Ok(())
}

fn describe(&(name, arity, first, last, step, writes): &(&str, i64, i64, i64, i64, bool), reply: &mut Reply) {
    reply.array(6);
    reply.bulk(name.as_bytes());
    reply.integer(arity);
    reply.array(1);
    reply.simple(if writes { "write" } else { "readonly" });
    reply.integer(first);
    reply.integer(last);
    reply.integer(step);
}

/// `CONFIG GET pattern ...`: nothing is configurable at run time; benchmarks ask all the same.
pub(super) fn config(request: &Request<'_>, reply: &mut Reply) -> Result<(), String> {
    match request.args() {
        [_, sub, _, ..] if sub.eq_ignore_ascii_case(b"GET") => reply.map(0),
        [_] => return Err(arity("CONFIG")),
        _ => return Err("ERR nothing can be configured at run time; see lockgate serve --help".into()),
    }
    Ok(())
}
