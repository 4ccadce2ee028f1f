//! What a receiver saw.

/// What a [`Parser`](crate::Parser) saw since it was made. They add up:
/// - `bytes` = `bytes_accepted` + `bytes_skipped` + what the parser still holds (nothing after
///   [`finish`](crate::Parser::finish) returned `None`);
/// - intact chunks = `chunks_stored` + `chunks_repeated` + `chunks_late` + `messages`;
/// - frames of which anything arrived = `frames_ok` + `frames_incomplete` + `frames_corrupted` + the one being received;
/// - where `restarts` is 0: last sequence − first + 1 = frames of which anything arrived + `frames_missed` + `frames_overrun`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Counters {
    /// Bytes pushed.
    pub bytes: u64,
    /// Bytes of intact chunks.
    pub bytes_accepted: u64,
    /// Bytes that belong to no intact chunk.
    pub bytes_skipped: u64,
    /// Headers begun and damaged (the magic can also turn up by chance).
    pub headers_corrupted: u64,
    /// Intact headers that this parser does not take: other version or content, sizes beyond its buffers or the format's limits.
    pub headers_refused: u64,
    /// Intact headers whose payload is damaged or cut.
    pub chunks_corrupted: u64,
    /// Intact chunks that went into a frame.
    pub chunks_stored: u64,
    /// Intact chunks that had arrived before.
    pub chunks_repeated: u64,
    /// Intact chunks of frames that had already been given up or never begun.
    pub chunks_late: u64,
    /// Messages delivered.
    pub messages: u64,
    /// Frames delivered.
    pub frames_ok: u64,
    /// Frames given up because a newer one began, or the input ended, before all their chunks had arrived.
    pub frames_incomplete: u64,
    /// Frames given up because their chunks, each intact, do not belong together.
    pub frames_corrupted: u64,
    /// Frames of which nothing arrived.
    pub frames_missed: u64,
    /// Frames that the sender says it dropped itself.
    pub frames_overrun: u64,
    /// The sender began anew: another session, or a sequence that is neither new nor just late.
    pub restarts: u64,
}
