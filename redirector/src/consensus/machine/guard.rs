//! What raft must not be told. It takes its peers for sound and panics where they are not; a peer that has lost what it
//! once acknowledged, or lies, is refused here instead.

use raft::eraftpb::{Message, MessageType};
use raft::{Raft, Storage};

use crate::consensus::frame::FrameError;
use crate::consensus::state::Command;

/// Indexes beyond this are absurd, and sums with them might overflow.
const INDEX_MAX: u64 = u64::MAX / 4;

/// Whether a message can come from a peer that is sound.
pub(super) fn is_plausible<S: Storage>(raft: &Raft<S>, message: &Message) -> bool {
    let last = raft.raft_log.last_index();
    let numbers = [message.index, message.commit, message.term, message.log_term, message.reject_hint];
    if message.term == 0 || numbers.iter().any(|&number| number > INDEX_MAX) {
        return false;
    }
    match message.get_msg_type() {
        MessageType::MsgHeartbeat => message.commit <= last,
        MessageType::MsgAppend => are_entries_plausible(raft, message),
        MessageType::MsgAppendResponse => message.index <= last && message.reject_hint <= INDEX_MAX,
        MessageType::MsgSnapshot => {
            let metadata = message.get_snapshot().get_metadata();
            metadata.term <= message.term && metadata.index <= INDEX_MAX
        }
        MessageType::MsgTimeoutNow => message.from == raft.leader_id && message.term == raft.term,
        _ => true,
    }
}

/// Whether entries follow one another, are whole, and leave alone what is committed.
fn are_entries_plausible<S: Storage>(raft: &Raft<S>, message: &Message) -> bool {
    let log = &raft.raft_log;
    let mut before = (message.index, message.log_term);
    message.entries.iter().all(|entry| {
        let follows = entry.index == before.0 + 1 && entry.term >= before.1 && entry.term <= message.term;
        before = (entry.index, entry.term);
        let contradicts = entry.index <= log.committed
            && entry.index >= log.first_index()
            && log.term(entry.index).is_ok_and(|term| term != entry.term);
        // A change of seats has its command in the context, and raft's own form of it as data.
        let command = if entry.context.is_empty() { &entry.data } else { &entry.context };
        follows && !contradicts && is_whole(command)
    })
}

/// Whether a command is not damaged. One that only a newer version knows is whole, and this node stops when it is
/// committed.
fn is_whole(command: &[u8]) -> bool {
    command.is_empty() || !matches!(Command::open(command), Err(FrameError::Damaged))
}
