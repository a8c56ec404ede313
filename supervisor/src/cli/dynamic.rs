//! Messages whose type is known only at run time: between JSON and the wire.

use prost::Message as _;
use prost_reflect::{DynamicMessage, MessageDescriptor};
use tonic::{
    Status,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
};

use super::exit::{Exit, Failure, one_line};

/// Reads JSON (protobuf's mapping) as a message of this type.
///
/// # Errors
/// One line: what does not fit, where, and which fields there are.
pub(crate) fn parse(wanted: MessageDescriptor, text: &str) -> Result<DynamicMessage, String> {
    let mut reader = serde_json::Deserializer::from_str(text);
    let read = DynamicMessage::deserialize(wanted.clone(), &mut reader);
    read.and_then(|message| reader.end().map(|()| message)).map_err(|e| {
        let fields: Vec<_> = wanted.fields().map(|f| format!("{} ({})", f.name(), type_name(&f))).collect();
        let fields = if fields.is_empty() { "none".to_owned() } else { fields.join(", ") };
        let name = wanted.full_name();
        one_line(&format!("the JSON does not fit {name}: {e}; its fields are: {fields}"))
    })
}

fn type_name(field: &prost_reflect::FieldDescriptor) -> String {
    let kind = match field.kind() {
        prost_reflect::Kind::Message(m) => m.name().to_owned(),
        prost_reflect::Kind::Enum(e) => e.name().to_owned(),
        plain => format!("{plain:?}").to_lowercase(),
    };
    match (field.is_map(), field.is_list()) {
        (true, _) => "map".to_owned(),
        (_, true) => format!("list of {kind}"),
        _ => kind,
    }
}

/// The message as JSON (protobuf's mapping).
///
/// # Errors
/// It cannot be written as JSON (an `Any` of a type that is not known).
pub(crate) fn json(message: &DynamicMessage, pretty: bool) -> Result<String, Failure> {
    let text = if pretty { serde_json::to_string_pretty(message) } else { serde_json::to_string(message) };
    text.map_err(|e| Failure::new(Exit::Failed, one_line(&format!("the reply cannot be shown as JSON: {e}"))))
}

/// Codec of one method's replies; requests know their type.
#[derive(Clone, Debug)]
pub(crate) struct DynamicCodec(MessageDescriptor);

impl DynamicCodec {
    /// Replies are of this type.
    pub(crate) fn new(reply: MessageDescriptor) -> Self {
        Self(reply)
    }
}

impl Codec for DynamicCodec {
    type Encode = DynamicMessage;
    type Decode = DynamicMessage;
    type Encoder = DynamicEncoder;
    type Decoder = DynamicDecoder;

    fn encoder(&mut self) -> DynamicEncoder {
        DynamicEncoder
    }

    fn decoder(&mut self) -> DynamicDecoder {
        DynamicDecoder(self.0.clone())
    }
}

/// Message to bytes.
#[derive(Debug)]
pub(crate) struct DynamicEncoder;

impl Encoder for DynamicEncoder {
    type Item = DynamicMessage;
    type Error = Status;

    fn encode(&mut self, item: DynamicMessage, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        item.encode(buffer).map_err(|e| Status::internal(format!("the request cannot be encoded: {e}")))
    }
}

/// Bytes to message.
#[derive(Debug)]
pub(crate) struct DynamicDecoder(MessageDescriptor);

impl Decoder for DynamicDecoder {
    type Item = DynamicMessage;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<DynamicMessage>, Status> {
        let decoded = DynamicMessage::decode(self.0.clone(), buffer);
        decoded.map(Some).map_err(|e| Status::internal(format!("the reply cannot be decoded: {e}")))
    }
}
