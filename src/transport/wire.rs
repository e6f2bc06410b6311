//! Messages in a stream of bytes: a length of four bytes, big-endian, then so many bytes. Pure.

use bytes::{BufMut, Bytes, BytesMut};

/// The size of the length before each message, in bytes.
pub(super) const HEAD_BYTES: usize = 4;
/// Messages up to this size are copied into one buffer with their neighbours; larger ones are handed on as they are.
const COPY_BYTES_MAX: usize = 16 * 1024;

/// A message that says it is larger than the stream allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a message of {bytes} bytes where at most {max} are allowed")]
pub(super) struct TooLarge {
    pub(super) bytes: usize,
    pub(super) max: usize,
}

/// The length that goes before a message; no message has 4 GiB.
pub(super) fn head(message: &[u8]) -> [u8; HEAD_BYTES] {
    u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes()
}

/// Appends `messages` to `chunks`, ready to be written: few chunks, and no copy of what is large.
pub(super) fn pack(messages: &mut Vec<Bytes>, small: &mut BytesMut, chunks: &mut Vec<Bytes>) {
    let copied = |message: &Bytes| HEAD_BYTES + if message.len() <= COPY_BYTES_MAX { message.len() } else { 0 };
    small.reserve(messages.iter().map(copied).sum());
    for message in messages.drain(..) {
        small.put_slice(&head(&message));
        if message.len() <= COPY_BYTES_MAX {
            small.put_slice(&message);
        } else {
            chunks.push(small.split().freeze());
            chunks.push(message);
        }
    }
    if !small.is_empty() {
        chunks.push(small.split().freeze());
    }
}

/// Cuts what arrives into messages. A message within one chunk is not copied; memory is taken as bytes arrive, never
/// on the word of a length.
#[derive(Debug)]
pub(super) struct Unpacker {
    max: usize,
    chunk: Bytes,
    begun: BytesMut,
}

impl Unpacker {
    /// For messages of up to `max` bytes.
    pub(super) fn new(max: usize) -> Self {
        Self { max, chunk: Bytes::new(), begun: BytesMut::new() }
    }

    /// Takes the next chunk; only once [`Self::next`] has nothing more to give.
    pub(super) fn push(&mut self, chunk: Bytes) {
        debug_assert!(self.chunk.is_empty(), "messages of the last chunk would be lost");
        self.chunk = chunk;
    }

    /// The next whole message.
    pub(super) fn next(&mut self) -> Result<Option<Bytes>, TooLarge> {
        if self.begun.is_empty()
            && let Some(bytes) = self.length(&self.chunk)?
            && self.chunk.len() >= HEAD_BYTES + bytes
        {
            let mut message = self.chunk.split_to(HEAD_BYTES + bytes);
            return Ok(Some(message.split_off(HEAD_BYTES)));
        }
        self.take(HEAD_BYTES);
        let Some(bytes) = self.length(&self.begun)? else { return Ok(None) };
        self.take(HEAD_BYTES + bytes);
        if self.begun.len() < HEAD_BYTES + bytes {
            return Ok(None);
        }
        let mut message = std::mem::take(&mut self.begun).freeze();
        Ok(Some(message.split_off(HEAD_BYTES)))
    }

    /// True between messages: where a stream may end.
    pub(super) fn is_between(&self) -> bool {
        self.chunk.is_empty() && self.begun.is_empty()
    }

    fn length(&self, bytes: &[u8]) -> Result<Option<usize>, TooLarge> {
        let Some(head) = bytes.first_chunk::<HEAD_BYTES>() else { return Ok(None) };
        let bytes = usize::try_from(u32::from_be_bytes(*head)).unwrap_or(usize::MAX);
        if bytes > self.max {
            return Err(TooLarge { bytes, max: self.max });
        }
        Ok(Some(bytes))
    }

    fn take(&mut self, until: usize) {
        let missing = until.saturating_sub(self.begun.len()).min(self.chunk.len());
        self.begun.extend_from_slice(&self.chunk.split_to(missing));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn messages_survive_any_cutting(
            sizes in prop::collection::vec(prop_oneof![0_usize..200, COPY_BYTES_MAX - 2..COPY_BYTES_MAX + 2], 0..12),
            cuts in prop::collection::vec(1_usize..5_000, 1..40),
        ) {
            let messages: Vec<Bytes> =
                sizes.iter().enumerate().map(|(n, size)| Bytes::from(vec![n as u8; *size])).collect();
            let mut chunks = Vec::new();
            pack(&mut messages.clone(), &mut BytesMut::new(), &mut chunks);
            let mut stream = Bytes::from(chunks.concat());

            let mut unpacker = Unpacker::new(COPY_BYTES_MAX * 2);
            let mut read = Vec::new();
            let mut cuts = cuts.iter().cycle();
            while !stream.is_empty() {
                unpacker.push(stream.split_to((*cuts.next().unwrap()).min(stream.len())));
                while let Some(message) = unpacker.next().unwrap() {
                    read.push(message);
                }
            }
            prop_assert!(unpacker.is_between());
            prop_assert_eq!(read, messages);
        }
    }

    #[test]
    fn a_message_over_the_limit_is_refused_by_its_length_alone() {
        let mut unpacker = Unpacker::new(10);
        unpacker.push(Bytes::from_static(&[0, 0, 0, 11]));
        assert_eq!(unpacker.next(), Err(TooLarge { bytes: 11, max: 10 }));
        let mut unpacker = Unpacker::new(10);
        unpacker.push(Bytes::from_static(&[0xff]));
        assert_eq!(unpacker.next(), Ok(None));
        assert!(!unpacker.is_between());
        unpacker.push(Bytes::from_static(&[0xff, 0xff, 0xff]));
        assert!(unpacker.next().is_err());
    }
}
