//! A later version of the program, as far as others can hear it: it speaks one protocol version more, and says more than
//! this one knows of, in everything that it says.
//!
//! It is made of this program's own words: every map with named fields gets one more. An enum's variant with content is a
//! map too, of its name alone, and stays as it is: another kind of message needs another protocol version.

use bytes::Bytes;
use outrigger::cluster::hello::{Hello, PROTOCOL_VERSIONS};
use outrigger::replication::wire::{self, Answer, Batch, Request};
use outrigger::transport::memory::Words;
use rmpv::Value;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::sometimes::sometimes;
use crate::story;

/// The field that is new.
const FIELD: &str = "later";
/// The fields of those structs that have one alone, by which they are told from an enum's variant.
const ONLY_FIELDS: [&str; 2] = ["ballot", "record"];

/// What a later program says where this one says `bytes`. This one must be able to read it: otherwise the seed fails.
pub(crate) fn said(words: Words, bytes: &[u8]) -> Vec<u8> {
    let mut value = rmpv::decode::read_value(&mut &*bytes).expect("what the program says is MessagePack");
    let mut added = 0;
    add_to(&mut value, &mut added);
    if words == Words::Hello {
        speak_one_more(&mut value);
    }
    let mut later = Vec::new();
    rmpv::encode::write_value(&mut later, &value).expect("memory takes anything");
    let understood = match words {
        Words::Hello => hello(&later),
        Words::Message => understood::<Batch>(&later),
        Words::Request => understood::<Request>(&later),
        Words::Answer => understood::<Answer>(&later),
    };
    match understood {
        Ok(understood) if understood == bytes => {}
        Ok(_) => story::fail(format!("what a later version says is taken for something else: {words:?}: {value}")),
        Err(error) => story::fail(format!("what a later version says cannot be read: {words:?}: {error}: {value}")),
    }
    sometimes!(added > 0 && words == Words::Hello, "a hello held what only a later version knows");
    sometimes!(added > 0 && words == Words::Message, "a message held what only a later version knows");
    sometimes!(added > 0 && words == Words::Request, "a request held what only a later version knows");
    sometimes!(added > 0 && words == Words::Answer, "an answer held what only a later version knows");
    later
}

/// What this program reads in something, in its own words.
fn understood<T: Serialize + DeserializeOwned>(bytes: &[u8]) -> Result<Bytes, String> {
    let read = wire::decode::<T>(bytes).map_err(|error| error.to_string())?;
    wire::encode(&read).map_err(|error| error.to_string())
}

/// The same for a hello: the newest version that both speak is this program's.
fn hello(bytes: &[u8]) -> Result<Bytes, String> {
    let mut hello = Hello::decode(bytes).map_err(|error| error.to_string())?;
    let common = hello.versions.common(PROTOCOL_VERSIONS);
    if hello.versions.max <= PROTOCOL_VERSIONS.max || common != Some(PROTOCOL_VERSIONS.max) {
        return Err(format!("it speaks {}, of which {common:?} is taken", hello.versions));
    }
    hello.versions = PROTOCOL_VERSIONS;
    Ok(hello.encode())
}

fn speak_one_more(hello: &mut Value) {
    let field = |map: &Value, name: &str| map.as_map()?.iter().position(|(key, _)| key.as_str() == Some(name));
    let newest = u64::from(PROTOCOL_VERSIONS.max) + 1;
    if let Some(versions) = field(hello, "versions")
        && let Value::Map(fields) = hello
        && let Some(max) = field(&fields[versions].1, "max")
        && let Value::Map(fields) = &mut fields[versions].1
    {
        fields[max].1 = newest.into();
    }
}

/// Adds a field to every struct within, at a place and with content that what is there decides.
fn add_to(value: &mut Value, added: &mut usize) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(|item| add_to(item, added)),
        Value::Map(fields) => {
            fields.iter_mut().for_each(|(_, field)| add_to(field, added));
            let only = |fields: &[(Value, Value)]| fields[0].0.as_str().is_some_and(|name| ONLY_FIELDS.contains(&name));
            if fields.len() > 1 || fields.len() == 1 && only(fields) {
                *added += 1;
                fields.insert(*added % (fields.len() + 1), (FIELD.into(), content(*added)));
            }
        }
        _ => {}
    }
}

fn content(number: usize) -> Value {
    match number % 5 {
        0 => Value::Nil,
        1 => "later".into(),
        2 => Value::Map(vec![("kind".into(), Value::Array(vec![1.into(), Value::Nil])), ("on".into(), true.into())]),
        3 => Value::Binary(vec![0xc1, 0xff]),
        _ => Value::Array(vec![Value::F64(0.5), (-1).into(), u64::MAX.into()]),
    }
}
