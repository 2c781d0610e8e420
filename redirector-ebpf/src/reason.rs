//! Why a packet left the program where it did. Each exit has one reason, and each reason a counter.

/// What the program tells the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// To the kernel's stack.
    Pass,
    /// Gone.
    Drop,
    /// Out by the port that it came in by.
    Transmit,
    /// Out by another port.
    Redirect,
}

macro_rules! reasons {
    ($($name:ident $text:literal $action:ident $meaning:literal;)*) => {
        /// Why a packet left the program where it did.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u32)]
        pub enum Reason {
            $(#[doc = $meaning] $name,)*
        }

        impl Reason {
            /// All, in the order of their counters.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// Its name in counters and tables.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $text),* }
            }

            /// One sentence about it.
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$name => $meaning),* }
            }

            /// What becomes of the packet. [`Action::Transmit`] stands for a redirect too: the path's port decides.
            #[inline(always)]
            pub const fn action(self) -> Action {
                match self { $(Self::$name => Action::$action),* }
            }
        }
    };
}

reasons! {
    NotForMe "not-for-me" Pass "The destination MAC address is not this port's.";
    NotIp "not-ip" Pass "Neither IPv4 nor IPv6.";
    NotOurs "not-ours" Pass "The destination is no VIP.";
    UnmatchedPass "unmatched-pass" Pass "A VIP's port without a service; the VIP says `pass`.";
    NeighbourDiscovery "neighbour-discovery" Pass "Neighbour discovery addressed to a VIP that this node does not hold.";
    EchoPass "echo-pass" Pass "An echo request to a VIP that says `pass`.";
    Served "served" Transmit "Sent to its backend.";
    Forwarded "forwarded" Transmit "Sent to its slot's owner.";
    HandedBack "handed-back" Transmit "Unknown to the new owner, sent on to the slot's previous one.";
    ArpAnswered "arp-answered" Transmit "An ARP request for a VIP that this node holds, answered here.";
    NdAnswered "nd-answered" Transmit "A neighbour solicitation for a VIP that this node holds, answered here.";
    EchoAnswered "echo-answered" Transmit "An echo request to a VIP, answered here.";
    ResetSent "reset-sent" Transmit "A TCP segment to a port without a service, that is refused, or whose backend is dead, answered by a reset.";
    UnreachableSent "unreachable-sent" Transmit "A packet to a port without a service or that is refused, answered by port unreachable.";
    TooBigSent "too-big-sent" Transmit "Longer than its path takes; the sender was told the MTU.";
    UnmatchedDrop "unmatched-drop" Drop "A VIP's port without a service; the VIP says `drop`.";
    EchoDrop "echo-drop" Drop "An echo request to a VIP that says `drop`.";
    MalformedEthernet "malformed-ethernet" Drop "Shorter than its link-layer headers.";
    MalformedIpv4 "malformed-ipv4" Drop "An IPv4 header that contradicts itself or the frame's length.";
    MalformedIpv6 "malformed-ipv6" Drop "An IPv6 header that contradicts the frame's length.";
    MalformedTransport "malformed-transport" Drop "A transport header that is cut off or contradicts itself.";
    ExtensionHeaders "extension-headers" Drop "More IPv6 extension headers than are walked.";
    RoutingHeader "routing-header" Drop "An IPv6 routing header with segments left.";
    IcmpUnsupported "icmp-unsupported" Drop "An ICMP message to a VIP that is neither an echo request nor an error.";
    IcmpQuote "icmp-quote" Drop "An ICMP error whose quoted packet is cut off or did not come from the VIP.";
    FragmentUnknown "fragment-unknown" Drop "A later fragment whose first one was not seen.";
    Shed "shed" Drop "A new flow of a class that the shed level refuses.";
    ShedEstablished "shed-established" Drop "A packet of the lowest class while the shed level is the highest.";
    NewFlowBudget "new-flow-budget" Drop "More new flows on this CPU than its budget.";
    SourceBudget "source-budget" Drop "More new flows from this source prefix than its budget.";
    NoBackend "no-backend" Drop "The row names no backend, or one that is not of the service's pool.";
    NoPath "no-path" Drop "The backend has no path.";
    NoNeighbour "no-neighbour" Drop "The next hop's MAC address is not known.";
    NoPort "no-port" Drop "The path's port is not attached.";
    NoTables "no-tables" Drop "A table that must be there is not: the agent has not filled it.";
    TtlExceeded "ttl-exceeded" Drop "The TTL or hop limit ran out.";
    TooBig "too-big" Drop "Longer than its path takes, and the budget for telling the sender is spent.";
    ReplyBudget "reply-budget" Drop "An answer was due and its budget is spent.";
    ReplyTooLong "reply-too-long" Drop "An answer was due and the headers that it must quote are too long.";
    ReplyHandedOver "reply-handed-over" Pass "An answer to a packet from another node, given to the kernel to forward.";
    NoRoom "no-room" Drop "The frame could not be grown or cut.";
    HopUnknownSender "hop-unknown-sender" Drop "A node's header from an address that is no member's.";
    HopMalformed "hop-malformed" Drop "A node's header that is cut off, of another version or another cluster.";
    HopTag "hop-tag" Drop "A node's header with a wrong tag.";
    TunnelUnknownSource "tunnel-unknown-source" Drop "A tunnel packet from a source that is not configured.";
    TunnelNotVip "tunnel-not-vip" Drop "A tunnel packet whose inner destination is no configured VIP.";
    TunnelMalformed "tunnel-malformed" Drop "A tunnel packet whose inner header is cut off.";
    TunnelCongestion "tunnel-congestion" Drop "A tunnel packet marked for congestion whose inner sender does not speak ECN (RFC 6040).";
    BeatAnswered "beat-answered" Transmit "A peer's beat, answered.";
    BeatTaken "beat-taken" Drop "A peer's answer to a beat, taken note of.";
    BeatMalformed "beat-malformed" Drop "A beat that is cut off, or says what cannot be.";
    BeatVersion "beat-version" Drop "A beat of another version.";
    BeatForeign "beat-foreign" Drop "A beat of another cluster, for another node, or from one that this node does not ask.";
    BeatTag "beat-tag" Drop "A beat with an unknown key or a wrong tag.";
    BeatReplayed "beat-replayed" Drop "A beat that was seen before, or answers no recent request of this agent.";
    Unwrapped "unwrapped" Pass "A tunnel packet, taken apart for this host.";
    NoteInsertBudget "note-insert-budget" Pass "Besides: a flow was served but not recorded, the budget of inserts was spent.";
    NoteBucketFull "note-bucket-full" Pass "Besides: a flow was served but not recorded, its bucket held proven flows only.";
    NoteEvicted "note-evicted" Pass "Besides: an unproven or expired flow made room for a new one.";
    NoteRecorded "note-recorded" Pass "Besides: a flow was recorded.";
    NoteLeastBad "note-least-bad" Pass "Besides: no path of the backend was alive, the first was taken.";
    NoteEventLost "note-event-lost" Pass "Besides: a flow changed and the ring that tells the agent was full.";
    NoteSevered "note-severed" Pass "Besides: a TCP flow's backend is dead, and its client is told so by a reset.";
    NoteAvoided "note-avoided" Pass "Besides: no path of a new flow's backend was alive, another backend was taken.";
}

impl Reason {
    /// Whether it counts a thing that happened besides the packet's verdict.
    pub fn is_note(self) -> bool {
        self as u32 >= Self::NoteInsertBudget as u32
    }
}

/// How the packet leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Why.
    pub reason: Reason,
    /// By which port, where the action is [`Action::Transmit`].
    pub port: u8,
}

impl Default for Verdict {
    fn default() -> Self {
        Self { reason: Reason::NoTables, port: 0 }
    }
}

/// What a station ends with when it does not decide: nothing. When it decides, its reason is the error.
pub type Station<T> = Result<T, Reason>;
