//! From raw values to a [`Config`] that cannot be wrong.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;

use super::layers::{Layers, Placed, Raw, shortened};
use super::{
    AdminConfig, ClusterConfig, Config, ConfigError, Durability, Identity, NodeConfig, PeerConfig, SEEDS_MAX,
    SOCKET_PATH_BYTES_MAX, SocketConfig, StoreConfig, TimeoutConfig,
};
use crate::cluster::hello::CLUSTER_ID_BYTES_MAX;
use crate::cluster::membership::VOTERS_MAX;
use crate::replication::outbox::{OUTBOX_BYTES_LIMIT, OUTBOX_ENTRIES_LIMIT};
use crate::types::{KEY_BYTES_LIMIT, NodeId, VALUE_BYTES_LIMIT};

const MILLISECOND: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

pub(super) fn validate(layers: &Layers, pod_ip: Option<&str>) -> Result<Config, ConfigError> {
    let fields = Fields(layers);
    let node = NodeConfig {
        name: fields.parsed(
            "node.name",
            "node",
            "1 to 128 of A-Z a-z 0-9 . _ @ -, a letter or digit first",
            |text| NodeId::parse(text).ok(),
        )?,
        data_dir: fields.path("node.data_dir", "./outrigger-data")?,
    };
    let seeds = seeds(&fields)?;
    let has_seeds = !seeds.is_empty();
    let cluster = cluster(&fields, &node.name, has_seeds)?;
    Ok(Config {
        peer: peer(&fields, pod_ip, seeds, cluster.voters.len() == 1 && !has_seeds)?,
        socket: socket(&fields)?,
        access: super::access::rules(layers)?,
        limits: super::access::limits(layers)?,
        admin: AdminConfig { listen: fields.listen("admin.listen", "127.0.0.1:9464")? },
        store: StoreConfig {
            idle_evict_after: fields.duration("store.idle_evict_after", "10m", MILLISECOND..=365 * DAY)?,
            unused_drop_after: fields.duration("store.unused_drop_after", "1h", SECOND..=365 * DAY)?,
            tombstone_grace: fields.duration("store.tombstone_grace", "1h", 100 * MILLISECOND..=365 * DAY)?,
            durability: fields.parsed("store.durability", "fsync", "\"fsync\" or \"os\"", |text| match text {
                "fsync" => Some(Durability::Fsync),
                "os" => Some(Durability::Os),
                _ => None,
            })?,
            value_size_max: fields.size("store.value_size_max", "1MiB", VALUE_BYTES_LIMIT)?,
            key_size_max: fields.size("store.key_size_max", "1KiB", KEY_BYTES_LIMIT)?,
            outbox_entries_max: fields.count("store.outbox_entries_max", "10000", OUTBOX_ENTRIES_LIMIT)?,
            outbox_size_max: fields.size("store.outbox_size_max", "64MiB", OUTBOX_BYTES_LIMIT)?,
        },
        timeouts: TimeoutConfig { propose: fields.duration("timeouts.propose", "2s", MILLISECOND..=MINUTE)? },
        node,
        cluster,
    })
}

fn socket(fields: &Fields<'_>) -> Result<SocketConfig, ConfigError> {
    let path = fields.path("socket.path", "./outrigger.sock")?;
    let bytes = path.as_os_str().len();
    if bytes > SOCKET_PATH_BYTES_MAX {
        let want =
            format!("a path of at most {SOCKET_PATH_BYTES_MAX} bytes, the system's limit for sockets, not {bytes}");
        return Err(fields.wrong("socket.path", want));
    }
    let mode = fields.parsed("socket.mode", "0660", "an octal file mode in quotes, \"0000\" to \"0777\"", |text| {
        let digits = text.strip_prefix("0o").unwrap_or(text);
        let octal = (1..=4).contains(&digits.len()) && digits.bytes().all(|b| (b'0'..=b'7').contains(&b));
        u32::from_str_radix(digits, 8).ok().filter(|mode| octal && *mode <= 0o777)
    })?;
    Ok(SocketConfig { path, mode })
}

fn peer(fields: &Fields<'_>, pod_ip: Option<&str>, seeds: Vec<String>, alone: bool) -> Result<PeerConfig, ConfigError> {
    let listen = fields.listen("peer.listen", "0.0.0.0:7117")?;
    let advertise = match fields.0.get("peer.advertise") {
        Some(_) => fields.parsed("peer.advertise", "", "host:port, an address that peers can dial", |text| {
            let dialable = text.parse::<SocketAddr>().map_or(true, |addr| !addr.ip().is_unspecified());
            (is_host_port(text) && dialable).then(|| text.to_owned())
        })?,
        None if alone || !listen.ip().is_unspecified() => listen.to_string(),
        None => advertise_pod(listen, pod_ip)?,
    };
    Ok(PeerConfig { listen, advertise, seeds })
}

fn seeds(fields: &Fields<'_>) -> Result<Vec<String>, ConfigError> {
    let seeds = fields.list("peer.seeds", SEEDS_MAX)?;
    if let Some(bad) = seeds.iter().find(|seed| !is_host_port(seed)) {
        let bad = shortened(format!("{bad:?}"));
        return Err(fields.wrong("peer.seeds", format!("host:port in each entry, which {bad} is not")));
    }
    Ok(seeds)
}

/// Listening everywhere does not say where peers find this node; Kubernetes may.
fn advertise_pod(listen: SocketAddr, pod_ip: Option<&str>) -> Result<String, ConfigError> {
    let Some(pod_ip) = pod_ip else {
        return Err(ConfigError::Invalid {
            key: "peer.advertise".to_owned(),
            origin: "configuration".to_owned(),
            got: "nothing".to_owned(),
            want: format!(
                "host:port that peers can dial (or POD_IP in the environment), as peer.listen = \"{listen}\" is every address"
            ),
        });
    };
    let ip = pod_ip.parse::<IpAddr>().ok().filter(|ip| !ip.is_unspecified());
    let ip = ip.ok_or_else(|| ConfigError::Invalid {
        key: "peer.advertise".to_owned(),
        origin: "environment variable POD_IP".to_owned(),
        got: Raw::Text(pod_ip.to_owned()).shown(),
        want: "the pod's IP address".to_owned(),
    })?;
    Ok(SocketAddr::new(ip, listen.port()).to_string())
}

fn cluster(fields: &Fields<'_>, me: &NodeId, has_seeds: bool) -> Result<ClusterConfig, ConfigError> {
    let want = format!("1 to {CLUSTER_ID_BYTES_MAX} bytes without control characters");
    let id = fields.parsed("cluster.id", "default", &want, |text| {
        let fits = (1..=CLUSTER_ID_BYTES_MAX).contains(&text.len()) && !text.contains(char::is_control);
        fits.then(|| text.to_owned())
    })?;
    let voters = voters(fields, me, has_seeds)?;
    let identity = identity(fields)?;
    if (voters.len() > 1 || has_seeds) && identity.is_none() {
        return Err(ConfigError::Invalid {
            key: "cluster.key_file".to_owned(),
            origin: "configuration".to_owned(),
            got: "neither it nor cluster.tls".to_owned(),
            want: "one of them, as the nodes of a cluster have to prove to each other who they are".to_owned(),
        });
    }
    Ok(ClusterConfig {
        id,
        voters,
        replication_factor: replication_factor(fields)?,
        identity,
        max_skew: fields.duration("cluster.max_skew", "10s", MILLISECOND..=60 * MINUTE)?,
        ceiling_lead: fields.duration("cluster.ceiling_lead", "500ms", MILLISECOND..=MINUTE)?,
    })
}

fn voters(fields: &Fields<'_>, me: &NodeId, has_seeds: bool) -> Result<Vec<NodeId>, ConfigError> {
    let mut voters: Vec<NodeId> = Vec::new();
    for name in fields.list("cluster.voters", VOTERS_MAX)? {
        let voter = NodeId::parse(&name).map_err(|_| {
            let bad = shortened(format!("{name:?}"));
            fields.wrong("cluster.voters", format!("node names (letters, digits, . _ @ -), which {bad} is not"))
        })?;
        if voters.contains(&voter) {
            return Err(fields.wrong("cluster.voters", format!("each name once, and {voter} stands twice")));
        }
        voters.push(voter);
    }
    if voters.is_empty() && !has_seeds {
        voters.push(me.clone());
    }
    if !voters.contains(me) && !has_seeds {
        let origin = fields.0.get("node.name").map_or("default", |placed| placed.origin.as_str());
        return Err(ConfigError::Invalid {
            key: "node.name".to_owned(),
            origin: origin.to_owned(),
            got: format!("\"{me}\""),
            want: format!("one of cluster.voters = {voters:?}, or peer.seeds to join them by without a vote"),
        });
    }
    Ok(voters)
}

fn replication_factor(fields: &Fields<'_>) -> Result<Option<usize>, ConfigError> {
    let factor = fields.count("cluster.replication_factor", "0", VOTERS_MAX).map_err(|_| {
        let want = format!("a number of voters from 1 to {VOTERS_MAX}, as in 3, or 0 for all of them");
        fields.wrong("cluster.replication_factor", want)
    })?;
    Ok(Some(factor).filter(|factor| *factor > 0))
}

fn identity(fields: &Fields<'_>) -> Result<Option<Identity>, ConfigError> {
    const TLS: [&str; 3] = ["cluster.tls.ca", "cluster.tls.cert", "cluster.tls.key"];
    let given = TLS.iter().filter(|path| fields.0.get(path).is_some()).count();
    let key_file = fields.0.get("cluster.key_file").map(|_| fields.path("cluster.key_file", "")).transpose()?;
    match (key_file, given) {
        (Some(_), 1..) => Err(fields.wrong("cluster.key_file", "either it or cluster.tls, not both".to_owned())),
        (Some(file), _) => Ok(Some(Identity::KeyFile(file))),
        (None, 0) => Ok(None),
        (None, 3) => Ok(Some(Identity::Pem {
            ca: fields.path("cluster.tls.ca", "")?,
            cert: fields.path("cluster.tls.cert", "")?,
            key: fields.path("cluster.tls.key", "")?,
        })),
        (None, _) => {
            let (here, missing): (Vec<&str>, Vec<&str>) = TLS.iter().partition(|path| fields.0.get(path).is_some());
            Err(ConfigError::Invalid {
                key: "cluster.tls".to_owned(),
                origin: here.first().and_then(|path| fields.0.get(path)).map_or_else(String::new, |p| p.origin.clone()),
                got: here.join(" and "),
                want: format!("ca, cert and key, so {} too", missing.join(" and ")),
            })
        }
    }
}

fn is_host_port(text: &str) -> bool {
    if let Ok(addr) = text.parse::<SocketAddr>() {
        return addr.port() != 0;
    }
    text.rsplit_once(':').is_some_and(|(host, port)| {
        let label = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        let digits = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
        (1..=253).contains(&host.len()) && host.chars().all(label) && digits && port.parse::<u16>().is_ok_and(|n| n > 0)
    })
}

/// Reads one key after the other, falling back to its default.
struct Fields<'a>(&'a Layers);

impl Fields<'_> {
    fn wrong(&self, path: &str, want: String) -> ConfigError {
        let placed = self.0.get(path);
        ConfigError::Invalid {
            key: path.to_owned(),
            origin: placed.map_or_else(|| "configuration".to_owned(), |placed| placed.origin.clone()),
            got: placed.map_or_else(|| "nothing".to_owned(), |placed| placed.raw.shown()),
            want,
        }
    }

    fn parsed<T>(
        &self,
        path: &str,
        default: &str,
        want: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<T, ConfigError> {
        let parsed = match self.0.get(path) {
            None => parse(default),
            Some(Placed { raw: Raw::Text(text), .. }) => parse(text),
            Some(_) => None,
        };
        parsed.ok_or_else(|| self.wrong(path, want.to_owned()))
    }

    fn path(&self, path: &str, default: &str) -> Result<PathBuf, ConfigError> {
        self.parsed(path, default, "a path", |text| {
            (!text.is_empty() && !text.contains('\0')).then(|| PathBuf::from(text))
        })
    }

    fn listen(&self, path: &str, default: &str) -> Result<SocketAddr, ConfigError> {
        self.parsed(path, default, "IP:port to listen on, as in \"0.0.0.0:7117\" or \"[::]:7117\"", |text| {
            text.parse().ok()
        })
    }

    fn duration(&self, path: &str, default: &str, range: RangeInclusive<Duration>) -> Result<Duration, ConfigError> {
        let shown = |duration: &Duration| humantime::format_duration(*duration).to_string();
        let want = format!("a duration from {} to {}, as in \"{default}\"", shown(range.start()), shown(range.end()));
        self.parsed(path, default, &want, |text| {
            humantime::parse_duration(text).ok().filter(|duration| range.contains(duration))
        })
    }

    fn count(&self, path: &str, default: &str, max: usize) -> Result<usize, ConfigError> {
        let want = format!("a number from 0 to {max}, as in {default}");
        let parsed = match self.0.get(path).map(|placed| &placed.raw) {
            None => default.parse(),
            Some(Raw::Text(text) | Raw::Other(text)) => text.parse(),
            Some(Raw::List(_) | Raw::Tables(_)) => return Err(self.wrong(path, want)),
        };
        parsed.ok().filter(|count: &usize| *count <= max).ok_or_else(|| self.wrong(path, want))
    }

    fn size(&self, path: &str, default: &str, max: usize) -> Result<usize, ConfigError> {
        let want = format!("a size from 1B to {}, as in \"{default}\"", super::render::size(max));
        self.parsed(path, default, &want, |text| {
            let bytes = text.parse::<ByteSize>().ok().and_then(|size| usize::try_from(size.as_u64()).ok());
            bytes.filter(|bytes| (1..=max).contains(bytes))
        })
    }

    fn list(&self, path: &str, max: usize) -> Result<Vec<String>, ConfigError> {
        match self.0.get(path) {
            None => Ok(Vec::new()),
            Some(Placed { raw: Raw::List(items), .. }) if items.len() <= max => Ok(items.clone()),
            Some(_) => Err(self.wrong(path, format!("a list of at most {max} texts"))),
        }
    }
}
