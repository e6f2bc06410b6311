//! A node's socket, faked: keys in a map, versions counted from 1000, and answers that a test can dictate.

#![allow(dead_code, reason = "each test program uses a part of it")]

use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use percent_encoding::percent_decode_str;
use serde_json::json;

#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) method: String,
    /// Without the query.
    pub(crate) path: String,
    pub(crate) query: BTreeMap<String, String>,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: Vec<u8>,
    /// Which connection it came over, from 0.
    pub(crate) connection: usize,
}

#[derive(Debug, Clone)]
pub(crate) enum Answer {
    /// Status, further head lines, body.
    Whole(u16, Vec<String>, Vec<u8>),
    /// These bytes, then the connection's end.
    CutOff(Vec<u8>),
    /// The connection's end after a whole answer, without having said so.
    ThenClose(Box<Answer>),
    /// No answer while the test runs.
    Never,
}

#[derive(Debug, Default)]
struct State {
    rows: BTreeMap<String, (Vec<u8>, i64)>,
    last_upd: i64,
    dictated: VecDeque<Answer>,
    seen: Vec<Request>,
}

pub(crate) struct Fake {
    _dir: tempfile::TempDir,
    pub(crate) socket: PathBuf,
    state: Arc<Mutex<State>>,
}

pub(crate) fn problem(status: u16, kind: &str, written: &str) -> Answer {
    let body = json!({ "type": format!("urn:outrigger:problem:{kind}"), "title": format!("Title of {kind}"),
        "status": status, "detail": format!("detail of {kind}"), "written": written });
    let head = vec!["content-type: application/problem+json".to_owned()];
    Answer::Whole(status, head, body.to_string().into_bytes())
}

impl Fake {
    pub(crate) fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let listener = UnixListener::bind(&socket).unwrap();
        let state = Arc::new(Mutex::new(State { last_upd: 1000, ..State::default() }));
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for (number, stream) in listener.incoming().enumerate() {
                let state = Arc::clone(&shared);
                std::thread::spawn(move || serve(number, stream.unwrap(), &state));
            }
        });
        Self { _dir: dir, socket, state }
    }

    /// The next request gets this, whatever it is.
    pub(crate) fn dictate(&self, answer: Answer) {
        self.state.lock().unwrap().dictated.push_back(answer);
    }

    pub(crate) fn seen(&self) -> Vec<Request> {
        self.state.lock().unwrap().seen.clone()
    }

    pub(crate) fn set(&self, key: &str, value: &[u8]) -> i64 {
        self.state.lock().unwrap().set(key, value)
    }
}

impl State {
    fn set(&mut self, key: &str, value: &[u8]) -> i64 {
        self.last_upd += 1;
        self.rows.insert(key.to_owned(), (value.to_vec(), self.last_upd));
        self.last_upd
    }

    fn answer(&mut self, request: &Request) -> Answer {
        if let Some(answer) = self.dictated.pop_front() {
            return answer;
        }
        let parts: Vec<&str> = request.path.splitn(6, '/').collect();
        match parts.as_slice() {
            ["", "v1", "kv", _, _, key] => {
                let key = percent_decode_str(key).decode_utf8().unwrap().into_owned();
                self.key(request, &key)
            }
            ["", "v1", "kv", _, _] => self.list(request),
            ["", "v1", "cluster", "health"] => Answer::Whole(200, vec![], b"ok".to_vec()),
            ["", "v1", "cluster"] => Answer::Whole(200, vec![], CLUSTER.as_bytes().to_vec()),
            ["", "v1", "cluster", "voters", _] => problem(503, "unhealthy", "no"),
            ["", "v1", "shards"] => Answer::Whole(200, vec![], SHARDS.as_bytes().to_vec()),
            _ => problem(404, "not-found", "no"),
        }
    }

    fn key(&mut self, request: &Request, key: &str) -> Answer {
        let etag = |upd: i64| vec![format!("etag: \"{upd}\"")];
        let found = self.rows.get(key).cloned();
        let current = found.as_ref().map(|(_, upd)| *upd);
        let wanted = request.headers.get("if-match").map(|etag| etag.trim_matches('"').parse::<i64>().unwrap());
        let fails = wanted.is_some_and(|upd| current != Some(upd))
            || (request.headers.contains_key("if-none-match") && current.is_some());
        match (request.method.as_str(), found) {
            ("PUT", _) if fails => Answer::Whole(412, current.map(etag).unwrap_or_default(), b"{}".to_vec()),
            ("PUT", _) => Answer::Whole(204, etag(self.set(key, &request.body)), vec![]),
            ("GET", Some((value, upd))) => Answer::Whole(200, etag(upd), value),
            ("GET", None) => problem(404, "not-found", "no"),
            ("DELETE", _) => {
                self.rows.remove(key);
                Answer::Whole(204, vec![], vec![])
            }
            _ => problem(405, "method-not-allowed", "no"),
        }
    }

    fn list(&self, request: &Request) -> Answer {
        let of = |name: &str| request.query.get(name).cloned().unwrap_or_default();
        let (prefix, after, keys_only) = (of("prefix"), of("after"), of("keys_only") == "true");
        let matching = self.rows.iter().filter(|(key, _)| key.starts_with(&prefix) && **key > after);
        let items: Vec<_> = matching
            .map(|(key, (value, upd))| match keys_only {
                true => json!({ "key": key, "upd": upd }),
                false => json!({ "key": key, "value": STANDARD.encode(value), "upd": upd }),
            })
            .collect();
        if request.headers.get("accept").is_some_and(|accept| accept == "application/x-ndjson") {
            let lines: String = items.iter().map(|item| format!("{item}\n")).collect();
            return Answer::Whole(200, vec![], lines.into_bytes());
        }
        let limit = of("limit").parse().unwrap_or(1000);
        let page: Vec<_> = items.iter().take(limit).collect();
        let next = if items.len() > limit { page.last().map(|item| item["key"].clone()) } else { None };
        Answer::Whole(200, vec![], json!({ "items": page, "next": next }).to_string().into_bytes())
    }
}

fn serve(connection: usize, stream: UnixStream, state: &Mutex<State>) {
    let mut reader = BufReader::new(stream);
    while let Some(request) = read_request(connection, &mut reader) {
        let answer = {
            let mut state = state.lock().unwrap();
            state.seen.push(request.clone());
            state.answer(&request)
        };
        if !write_answer(reader.get_mut(), answer) {
            return;
        }
    }
}

/// False where the connection ends with it.
fn write_answer(stream: &mut UnixStream, answer: Answer) -> bool {
    match answer {
        Answer::Whole(status, head, body) => {
            let head: String = head.iter().map(|line| format!("{line}\r\n")).collect();
            let length = if status == 204 { String::new() } else { format!("content-length: {}\r\n", body.len()) };
            let _ = write!(stream, "HTTP/1.1 {status} X\r\n{head}{length}\r\n");
            stream.write_all(&body).is_ok()
        }
        Answer::CutOff(bytes) => {
            let _ = stream.write_all(&bytes);
            false
        }
        Answer::ThenClose(answer) => {
            write_answer(stream, *answer);
            false
        }
        Answer::Never => {
            // Ends when the client has given up.
            let _ = stream.read(&mut [0]);
            false
        }
    }
}

fn read_request(connection: usize, reader: &mut BufReader<UnixStream>) -> Option<Request> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|bytes| *bytes > 0)?;
    let mut words = line.split(' ');
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim().split_once(": ") else { break };
        headers.insert(name.to_ascii_lowercase(), value.to_owned());
    }
    let length = headers.get("content-length").map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let decode = |text: &str| percent_decode_str(text).decode_utf8().unwrap().into_owned();
    let query = query.split('&').filter_map(|pair| pair.split_once('=')).map(|(k, v)| (decode(k), decode(v))).collect();
    Some(Request { method, path: path.to_owned(), query, headers, body, connection })
}

pub(crate) const CLUSTER: &str = r#"{"cluster":"blue","node":"a","version":"0.1.0","epoch":1,"voters":["a","b","c"],"nodes":[
{"node":"a","me":true,"live":true,"role":"voter","storage_id":"00000000000000aa","address":"10.0.0.1:7117",
 "round_trip_us":null,"epoch":1,"open_shards":4,"pending_frames":0,"clock_skew_us":null,"in_step":true,"lag_frames":0},
{"node":"b","me":false,"live":true,"role":"voter","storage_id":"00000000000000bb","address":"10.0.0.2:7117",
 "round_trip_us":420,"epoch":1,"open_shards":4,"pending_frames":2,"clock_skew_us":-1500,"in_step":true,"lag_frames":1},
{"node":"c","me":false,"live":false,"role":"voter","storage_id":null,"address":null,
 "round_trip_us":null,"epoch":null,"open_shards":null,"pending_frames":null,"clock_skew_us":null,"in_step":false,"lag_frames":null}],
"open_shards":4,"decisions":{"accept":12,"reject":1,"timeout":0},"pending_frames":2,"unready":null}"#;

const SHARDS: &str = r#"{"shards":[{"org":"acme","namespace":"payments","keys":3,"bytes":40960,"tombstones":2,"last_upd":1700000000123,"replicas":["a","c"],"in_step":["b","c"]},
{"org":"_","namespace":"default","keys":0,"bytes":4096,"last_upd":0,"in_step":[]}]}"#;
