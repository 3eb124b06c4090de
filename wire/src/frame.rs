//! Frames: `length u32 (little-endian) | version u8 | postcard message`, where length counts what follows it.
//!
//! Decoding never panics, never allocates more than the limit that the reader was given, and refuses what is left over.

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::{SinkExt, StreamExt};
use postcard::ser_flavors::Flavor;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::codec::{Encoder, FramedRead, FramedWrite, LengthDelimitedCodec};

use crate::limits::{FRAME_HEADER_BYTES, PROTOCOL_VERSION};

/// Why a frame could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// Longer than this kind of frame may be.
    #[error("a frame is longer than the {max} bytes allowed here")]
    TooLong {
        /// The limit.
        max: usize,
    },
    /// The other end speaks another version.
    #[error(
        "the peer speaks protocol version {theirs}, this is version {PROTOCOL_VERSION}: update the older of the two"
    )]
    Version {
        /// What it sent.
        theirs: u8,
    },
    /// Not a message of the kind expected here.
    #[error("a frame is not a valid message")]
    Malformed,
    /// The stream broke, or ended inside a frame.
    #[error("the stream broke: {0}")]
    Io(#[from] std::io::Error),
}

/// The body of a frame, without its length.
pub fn encode<T: Serialize>(message: &T, bytes_max: usize) -> Result<Bytes, FrameError> {
    let mut body = BytesMut::with_capacity(128);
    put(message, bytes_max, &mut body)?;
    Ok(body.freeze())
}

/// Writes the body of a frame behind what is in `buffer`. Its length; where it fails, there may be a part of it.
fn put<T: Serialize>(message: &T, bytes_max: usize, buffer: &mut BytesMut) -> Result<usize, FrameError> {
    let begin = buffer.len();
    buffer.put_u8(PROTOCOL_VERSION);
    postcard::serialize_with_flavor(message, Body(buffer)).map_err(|_| FrameError::Malformed)?;
    match buffer.len() - begin {
        bytes if bytes > bytes_max => Err(FrameError::TooLong { max: bytes_max }),
        bytes => Ok(bytes),
    }
}

/// The message in a frame's body; every byte must belong to it.
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, FrameError> {
    match body.split_first() {
        None => Err(FrameError::Malformed),
        Some((&PROTOCOL_VERSION, message)) => match postcard::take_from_bytes(message) {
            Ok((message, [])) => Ok(message),
            _ => Err(FrameError::Malformed),
        },
        Some((&theirs, _)) => Err(FrameError::Version { theirs }),
    }
}

/// Where postcard writes.
struct Body<'a>(&'a mut BytesMut);

impl Flavor for Body<'_> {
    type Output = ();

    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.0.put_u8(byte);
        Ok(())
    }

    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        self.0.put_slice(bytes);
        Ok(())
    }

    fn finalize(self) -> postcard::Result<()> {
        Ok(())
    }
}

/// Writes frames straight into the buffer that they leave from.
#[derive(Debug)]
struct Frames {
    bytes_max: usize,
}

impl<T: Serialize> Encoder<&T> for Frames {
    type Error = FrameError;

    fn encode(&mut self, message: &T, buffer: &mut BytesMut) -> Result<(), FrameError> {
        let begin = buffer.len();
        buffer.put_slice(&[0; FRAME_HEADER_BYTES]);
        match put(message, self.bytes_max, buffer) {
            Ok(bytes) => {
                let header = &mut buffer[begin..begin + FRAME_HEADER_BYTES];
                header.copy_from_slice(&(bytes as u32).to_le_bytes());
                Ok(())
            }
            Err(error) => {
                buffer.truncate(begin);
                Err(error)
            }
        }
    }
}

/// Reads frames of at most a given length.
#[derive(Debug)]
pub struct FrameReader<R> {
    framed: FramedRead<R, LengthDelimitedCodec>,
    bytes_max: usize,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// Frames longer than `bytes_max` are refused before anything is allocated for them.
    pub fn new(stream: R, bytes_max: usize) -> Self {
        Self { framed: FramedRead::new(stream, codec(bytes_max)), bytes_max }
    }

    /// The next message, or `None` where the stream ends between frames. Nothing is lost if this is dropped midway.
    pub async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, FrameError> {
        match self.framed.next().await {
            None => Ok(None),
            Some(Ok(body)) => decode(&body).map(Some),
            Some(Err(e)) if e.kind() == std::io::ErrorKind::InvalidData => {
                Err(FrameError::TooLong { max: self.bytes_max })
            }
            Some(Err(e)) => Err(FrameError::Io(e)),
        }
    }

    /// The stream itself.
    pub fn into_inner(self) -> R {
        self.framed.into_inner()
    }
}

/// Writes frames of at most a given length.
#[derive(Debug)]
pub struct FrameWriter<W> {
    framed: FramedWrite<W, Frames>,
}

impl<W: AsyncWrite + Unpin> FrameWriter<W> {
    /// Longer messages are refused here rather than by the other end.
    pub fn new(stream: W, bytes_max: usize) -> Self {
        Self { framed: FramedWrite::new(stream, Frames { bytes_max }) }
    }

    /// Writes one message and hands it to the stream.
    pub async fn send<T: Serialize>(&mut self, message: &T) -> Result<(), FrameError> {
        self.framed.send(message).await
    }

    /// Queues one message; it leaves with the next [`FrameWriter::send`] or [`FrameWriter::flush`].
    pub async fn feed<T: Serialize>(&mut self, message: &T) -> Result<(), FrameError> {
        self.framed.feed(message).await
    }

    /// Hands everything queued to the stream.
    pub async fn flush(&mut self) -> Result<(), FrameError> {
        <FramedWrite<_, _> as SinkExt<&()>>::flush(&mut self.framed).await
    }

    /// The stream itself.
    pub fn get_mut(&mut self) -> &mut W {
        self.framed.get_mut()
    }
}

fn codec(bytes_max: usize) -> LengthDelimitedCodec {
    LengthDelimitedCodec::builder()
        .little_endian()
        .length_field_length(FRAME_HEADER_BYTES)
        .max_frame_length(bytes_max)
        .new_codec()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn frames_cross_a_stream_whole_and_in_order() {
        let (a, b) = tokio::io::duplex(7);
        let mut writer = FrameWriter::new(a, 1_000);
        let mut reader = FrameReader::new(b, 1_000);
        let sent = tokio::spawn(async move {
            for i in 0..20u64 {
                writer.send(&vec![i; i as usize]).await.unwrap();
            }
        });
        for i in 0..20u64 {
            assert_eq!(reader.next::<Vec<u64>>().await.unwrap().unwrap(), vec![i; i as usize]);
        }
        sent.await.unwrap();
        assert!(reader.next::<Vec<u64>>().await.unwrap().is_none());
    }

    #[tokio::test]
    async fn an_oversized_length_is_refused_before_its_bytes_come() {
        let mut reader = FrameReader::new(&[0xff, 0xff, 0xff, 0x7f, 1][..], 1_000);
        assert!(matches!(reader.next::<u8>().await, Err(FrameError::TooLong { max: 1_000 })));
        assert!(matches!(encode(&vec![0u8; 1_000], 1_000), Err(FrameError::TooLong { .. })));
    }

    #[tokio::test]
    async fn a_message_that_is_too_long_leaves_nothing_behind() {
        let mut writer = FrameWriter::new(Vec::new(), 10);
        writer.feed(&1u8).await.unwrap();
        assert!(matches!(writer.feed(&vec![7u8; 11]).await, Err(FrameError::TooLong { max: 10 })));
        writer.send(&"abc").await.unwrap();
        assert_eq!(
            *writer.get_mut(),
            [2, 0, 0, 0, PROTOCOL_VERSION, 1, 5, 0, 0, 0, PROTOCOL_VERSION, 3, b'a', b'b', b'c']
        );
    }

    #[tokio::test]
    async fn a_stream_that_ends_inside_a_frame_is_an_error() {
        let mut reader = FrameReader::new(&[9, 0, 0, 0, 1, 2][..], 1_000);
        assert!(matches!(reader.next::<u8>().await, Err(FrameError::Io(_))));
    }

    #[test]
    fn versions_and_leftovers_are_refused() {
        const NEWER: u8 = PROTOCOL_VERSION + 1;
        assert!(matches!(decode::<u8>(&[NEWER, 5]), Err(FrameError::Version { theirs: NEWER })));
        assert!(matches!(decode::<u8>(&[PROTOCOL_VERSION, 5, 5]), Err(FrameError::Malformed)));
        assert!(matches!(decode::<u8>(&[]), Err(FrameError::Malformed)));
        assert_eq!(decode::<u8>(&[PROTOCOL_VERSION, 5]).unwrap(), 5);
    }
}
