//! Every verdict has a counter: its place in the map, its metric name and its labels stand here and nowhere else.

use crate::wire::answer::Answer;

/// A Prometheus series: the metric's name and its labels.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Series {
    /// Metric name, `_total` included.
    pub name: &'static str,
    /// Label names and values, without `path`.
    pub labels: &'static [(&'static str, &'static str)],
    /// Who feeds it.
    pub side: Side,
    /// The help line.
    pub help: &'static str,
}

/// Who feeds a counter.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Side {
    /// The daemon alone.
    User,
    /// The kernel alone.
    Kernel,
    /// Both; a label `path` tells them apart when scraped.
    Both,
}

/// Words of a block of counters.
const ROOM: usize = 192;

macro_rules! counters {
    ($($(#[$doc:meta])* $variant:ident $field:ident $side:ident = $name:literal [$($label:ident = $value:literal),*] $help:literal;)*) => {
        /// What is counted, in the kernel and in the daemon.
        #[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
        #[repr(u32)]
        pub enum Counter { $(#[doc = $help] $variant,)* }

        /// The counters as the per-CPU map holds them: named, so that `bpftool map dump` reads like a table.
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Eq, PartialEq)]
        pub struct Counters {
            $(#[doc = $help] pub $field: u64,)*
            /// Room for counters of later versions: the map keeps its shape, so that they take over what this one has counted.
            pub spare: [u64; ROOM - Counter::ALL.len()],
        }

        impl Counters {
            /// Nothing is counted yet.
            pub const ZERO: Self = Self { $($field: 0,)* spare: [0; ROOM - Counter::ALL.len()] };
        }

        impl Counter {
            /// All of them, in the order of the map.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The series under which this counter is scraped.
            pub const fn series(self) -> Series {
                match self { $(Self::$variant => Series {
                    name: $name, labels: &[$((stringify!($label), $value),)*], side: Side::$side, help: $help,
                },)* }
            }
        }

        impl Counters {
            /// The value of one counter.
            #[inline(always)]
            pub const fn get(&self, counter: Counter) -> u64 {
                match counter { $(Counter::$variant => self.$field,)* }
            }

            /// The place of one counter.
            #[inline(always)]
            pub const fn get_mut(&mut self, counter: Counter) -> &mut u64 {
                match counter { $(Counter::$variant => &mut self.$field,)* }
            }
        }
    };
}

// In the order of the map, which the next version takes over: a new one goes to the end, or `abi::LAYOUT` is raised.
counters! {
    FramesReceived frames_received User = "bre_frames_received_total" [] "Datagrams received on the multicast data port and the tee socket, those that the kernel stored included.";
    FramesCached frames_cached User = "bre_frames_cached_total" [] "Frames written to the frame log.";
    FrameUndecodable frame_undecodable User = "bre_frames_dropped_total" [reason = "decode_error"] "Datagrams on the data port that are no frame.";
    FrameUnnumbered frame_unnumbered User = "bre_frames_dropped_total" [reason = "no_sequence"] "Frames without a sequence number: received, not cached.";
    FrameOwnRepair frame_own_repair User = "bre_frames_dropped_total" [reason = "own_repair"] "Our own multicast repairs heard again: not cached.";
    FrameSocketOverflow frame_socket_overflow User = "bre_frames_dropped_total" [reason = "socket_overflow"] "Datagrams that the kernel lost because the receive buffer was full; neighbours that it had merged count as one.";
    FrameNotJoined frame_not_joined User = "bre_frames_dropped_total" [reason = "not_joined"] "Datagrams on the data port that came by unicast and not by a joined group: not cached.";
    FrameOtherGroup frame_other_group User = "bre_frames_dropped_total" [reason = "group_index"] "Bundles that name a group other than a joined shard: not cached, for their repair would go there.";
    FrameTooLarge frame_too_large User = "bre_frames_dropped_total" [reason = "too_large"] "Frames that no record can hold.";
    FrameLogBusy frame_log_busy User = "bre_frames_dropped_total" [reason = "log_busy"] "Frames not stored because the kernel was writing a frame with their key for more than 5 ms.";
    FrameDuplicate frame_duplicate User = "bre_cache_duplicates_total" [kind = "same"] "Frames heard again with the same bytes: the first record stays.";
    FrameReplaced frame_replaced User = "bre_cache_duplicates_total" [kind = "replaced"] "Frames heard again with other bytes: the newest stays.";
    StoredMulticast stored_multicast User = "bre_cache_stored_by_total" [via = "multicast"] "Frames stored from the multicast ingress.";
    StoredTee stored_tee User = "bre_cache_stored_by_total" [via = "tee"] "Frames stored from the tee socket.";
    StoredStore stored_store User = "bre_cache_stored_by_total" [via = "redis"] "Frames fetched from the shared store into the frame log.";
    StoredUpstream stored_upstream User = "bre_cache_stored_by_total" [via = "proxy"] "Frames stored that an upstream endpoint sent.";
    StoredApi stored_api User = "bre_cache_stored_by_total" [via = "api"] "Frames stored through the management API.";
    FilledByKernel filled_by_kernel User = "bre_fill_kernel_frames_total" [] "Frames heard by multicast that the kernel stored; the others the daemon.";
    FillRefused fill_refused Kernel = "bre_fill_kernel_refused_total" [reason = "checksum"] "Frames heard by multicast that the kernel refused because their checksum was wrong; the room that they were copied to was given back.";
    FillLeftKnown fill_left_known Kernel = "bre_fill_kernel_left_total" [reason = "known"] "Plain frames heard by multicast that the kernel left to the daemon because the log has one with their key, or with their tag in their bucket.";
    FillLeftBucket fill_left_bucket Kernel = "bre_fill_kernel_left_total" [reason = "bucket_full"] "Plain frames heard by multicast that the kernel left to the daemon because their index bucket was full, and its overflow bucket too.";
    FillLeftRoom fill_left_room Kernel = "bre_fill_kernel_left_total" [reason = "no_room"] "Plain frames heard by multicast that the kernel left to the daemon because no room had been made for them.";
    FillLeftContended fill_left_contended Kernel = "bre_fill_kernel_left_total" [reason = "contended"] "Plain frames heard by multicast that the kernel left to the daemon because other CPUs moved the head of the lane each time.";
    EvictedLapShort evicted_lap_short User = "bre_cache_evicted_total" [reason = "lap", ring = "short"] "Live transactions and BEEF objects overwritten because their ring came round.";
    EvictedLapLong evicted_lap_long User = "bre_cache_evicted_total" [reason = "lap", ring = "long"] "Live blocks, subtrees and anchors overwritten because their ring came round.";
    EvictedExpired evicted_expired User = "bre_cache_evicted_total" [reason = "expired"] "Frames dropped at the end of their life.";
    EvictedMaxKeys evicted_max_keys User = "bre_cache_evicted_total" [reason = "max_keys"] "Live frames dropped because of cache-max-keys.";
    EvictedBucket evicted_bucket User = "bre_cache_evicted_total" [reason = "bucket_full"] "Live frames dropped because their index bucket was full.";
    LogStaleEntries log_stale_entries User = "bre_log_repairs_total" [kind = "stale_entry"] "Index entries removed because their record was not what they said; 0 unless memory was damaged.";
    LogHoles log_holes User = "bre_log_repairs_total" [kind = "hole"] "Reserved positions of the frame log that no writer committed within half a second, given up.";
    LogBrokenChains log_broken_chains User = "bre_log_repairs_total" [kind = "broken_chain"] "Times that the chain of records was broken and taken up again at the next whole record; 0 unless memory was damaged.";
    LogLateCommits log_late_commits Kernel = "bre_log_repairs_total" [kind = "late_commit"] "Frames whose kernel writer was stopped for so long that the daemon had given their position up; not stored.";
    NackRequests nack_requests Both = "bre_nack_requests_total" [] "64-byte datagrams to the NACK port.";
    NackWrongSize nack_wrong_size Both = "bre_nack_dropped_total" [reason = "size"] "Datagrams to the NACK port of another size.";
    NackWrongMagic nack_wrong_magic Both = "bre_nack_dropped_total" [reason = "magic"] "64-byte datagrams to the NACK port without the magic.";
    NackWrongType nack_wrong_type Both = "bre_nack_dropped_total" [reason = "type"] "64-byte datagrams to the NACK port of another type.";
    NackRange nack_range Both = "bre_nack_dropped_total" [reason = "range"] "NACKs whose EndSeq differs from StartSeq.";
    NackWrongLength nack_wrong_length Both = "bre_nack_dropped_total" [reason = "length"] "Datagrams to the NACK port that are shorter than their IPv6 or UDP length says.";
    NackWrongChecksum nack_wrong_checksum Kernel = "bre_nack_dropped_total" [reason = "checksum"] "Datagrams of a NACK's size to the NACK port whose UDP checksum is wrong or absent. On the socket path the host's stack drops them before the daemon: Udp6InCsumErrors of /proc/net/snmp6.";
    NackDenied nack_denied Both = "bre_nack_refused_total" [reason = "denied"] "Datagrams to the NACK port that were dropped unread because a deny list names their source.";
    NackNotListed nack_not_listed Both = "bre_nack_refused_total" [reason = "not_listed"] "Datagrams to the NACK port that were dropped unread because there is an allow list and it does not name their source.";
    NackHopLimit nack_hop_limit Both = "bre_nack_refused_total" [reason = "hop_limit"] "Datagrams to the NACK port that were dropped unread because their hop limit was below hop-limit-min.";
    NackNoPeer nack_no_peer Both = "bre_nack_no_peer_total" [] "Proxied NACKs from a source that proxied-from does not name: served as a listener's, without a copy of their own.";
    NackUnanswerable nack_unanswerable User = "bre_nack_dropped_total" [reason = "source"] "NACKs from the unspecified address or from port 0: an answer would reach this host or no host.";
    NackStale nack_stale User = "bre_nack_dropped_total" [reason = "stale"] "Datagrams to the NACK port that had waited in the socket while no daemon ran, for more than a second: their listeners have asked another endpoint.";
    NackSocketOverflow nack_socket_overflow User = "bre_nack_dropped_total" [reason = "socket_overflow"] "Datagrams to the NACK port that the kernel dropped at the daemon's socket: its receive buffer was full, or the UDP checksum was wrong.";
    NackPortContended nack_port_contended User = "bre_nack_port_contended_total" [] "Looks, one per second, that found a socket of another program bound to the address and port of NACKs: it may take them.";
    CacheHits cache_hits Both = "bre_cache_hits_total" [] "NACKs for a frame that the cache holds.";
    CacheMisses cache_misses Both = "bre_cache_misses_total" [] "NACKs for a frame that the cache does not hold.";
    Retransmits retransmits Both = "bre_retransmits_total" [] "Multicast repairs that left, each counted once however many interfaces.";
    UnicastRetransmits unicast_retransmits Both = "bre_unicast_retransmits_total" [] "Unicast copies that left.";
    RetransmitDedup retransmit_dedup Both = "bre_retransmit_dedup_total" [] "Multicast repairs left out because another instance sent one.";
    RetransmitHeldDown retransmit_held_down Both = "bre_retransmit_holddown_total" [] "Multicast repairs left out because one had just left.";
    RetransmitErrors retransmit_errors Both = "bre_retransmit_errors_total" [] "Repairs that could not be sent.";
    RepairTorn repair_torn Both = "bre_repair_torn_total" [] "Repairs given up because the ring overwrote the frame meanwhile.";
    AcksSent acks_sent Both = "bre_responses_sent_total" [type = "ack"] "ACKs sent.";
    MissesSent misses_sent Both = "bre_responses_sent_total" [type = "miss"] "MISSes sent.";
    ThrottledSent throttled_sent Both = "bre_responses_sent_total" [type = "throttled"] "THROTTLEDs sent.";
    AckErrors ack_errors Both = "bre_response_send_errors_total" [type = "ack"] "ACKs that could not be sent.";
    MissErrors miss_errors Both = "bre_response_send_errors_total" [type = "miss"] "MISSes that could not be sent.";
    ThrottledErrors throttled_errors Both = "bre_response_send_errors_total" [type = "throttled"] "THROTTLEDs that could not be sent.";
    SendsHeld sends_held User = "bre_sends_held_total" [] "Answers, unicast copies and recoveries that waited until their listener's neighbour was resolved.";
    SendsBufferFull sends_buffer_full User = "bre_sends_dropped_total" [reason = "buffer_full"] "Datagrams that did not leave because the send buffer was full: no send waits.";
    SendsUnresolved sends_unresolved User = "bre_sends_dropped_total" [reason = "unresolved"] "Answers, unicast copies and recoveries given up because their listener's neighbour was not resolved within 500 ms.";
    SendsCrowded sends_crowded User = "bre_sends_dropped_total" [reason = "crowded"] "Answers, unicast copies and recoveries given up because too many others waited for neighbours.";
    LimitedAddress limited_address Both = "bre_rate_limit_drops_total" [level = "ip"] "NACKs over the limit of their address.";
    LimitedSequence limited_sequence Both = "bre_rate_limit_drops_total" [level = "sequence"] "NACKs over the limit of their frame.";
    Relieved relieved Both = "bre_rate_limit_relieved_total" [] "NACKs of known listeners that were served although the limit of their frame was used up.";
    LimitedChain limited_chain Both = "bre_rate_limit_drops_total" [level = "chain"] "NACKs over the limit of their address and flow.";
    LimitedGroup limited_group Both = "bre_rate_limit_drops_total" [level = "group"] "NACKs over the limit of their address and group.";
    TeeEncap tee_encap User = "bre_tee_datagrams_total" [form = "encap"] "Datagrams on the tee socket in an envelope that tells their source.";
    TeeRaw tee_raw User = "bre_tee_datagrams_total" [form = "raw"] "Datagrams on the tee socket without an envelope.";
    CacheErrors cache_errors User = "bre_cache_errors_total" [] "Operations of the shared store that failed or took too long.";
    StoreWritten store_written User = "bre_store_frames_written_total" [] "Frames written to the shared store.";
    StoreQueueFull store_queue_full User = "bre_store_frames_lost_total" [reason = "queue_full"] "Frames not written to the shared store because too many waited.";
    StoreWriteFailed store_write_failed User = "bre_store_frames_lost_total" [reason = "error"] "Frames not written to the shared store because it failed or was down.";
    StoreAsked store_asked User = "bre_store_lookups_total" [outcome = "asked"] "NACKs for which the shared store was asked.";
    StoreLate store_late User = "bre_store_lookups_total" [outcome = "late"] "NACKs answered MISS because the shared store did not answer in time, failed or was down.";
    DedupAnnounced dedup_announced User = "bre_dedup_repairs_total" [event = "announced"] "Multicast repairs of ours told to other instances.";
    DedupHeard dedup_heard User = "bre_dedup_repairs_total" [event = "heard"] "Multicast repairs of other instances that we were told of.";
    DedupFailedOpen dedup_failed_open User = "bre_dedup_errors_total" [reason = "failed_open"] "Multicast repairs sent without a claim because the shared store did not answer.";
    DedupNotAnnounced dedup_not_announced User = "bre_dedup_errors_total" [reason = "not_announced"] "Multicast repairs that other instances were not told of.";
    DedupEventsFull dedup_events_full Kernel = "bre_dedup_errors_total" [reason = "events_full"] "Multicast repairs that the daemon was not told of because the event ring was full.";
    ProxyRequests proxy_requests User = "bre_proxy_requests_total" [] "Recoveries begun, each of one frame; those that fail before an upstream is asked included.";
    ProxyNacks proxy_nacks User = "bre_proxy_nacks_total" [] "NACKs sent to upstream endpoints; a recovery may send several.";
    ProxyRecovered proxy_recovered User = "bre_proxy_recovered_total" [] "Frames that an upstream endpoint sent.";
    ProxyFailedMiss proxy_failed_miss User = "bre_proxy_failed_total" [reason = "exhausted", last = "miss"] "Recoveries given up because every upstream asked had not the frame.";
    ProxyFailedTimeout proxy_failed_timeout User = "bre_proxy_failed_total" [reason = "exhausted", last = "timeout"] "Recoveries given up because no upstream answered.";
    ProxyFailedThrottled proxy_failed_throttled User = "bre_proxy_failed_total" [reason = "exhausted", last = "throttled"] "Recoveries given up because the upstreams throttled us.";
    ProxyFailedUnreachable proxy_failed_unreachable User = "bre_proxy_failed_total" [reason = "exhausted", last = "unreachable"] "Recoveries given up because no upstream could be sent to.";
    ProxyFailedNone proxy_failed_none User = "bre_proxy_failed_total" [reason = "no_upstream"] "Recoveries given up because no upstream is known.";
    ProxyFailedAsker proxy_failed_asker User = "bre_proxy_failed_total" [reason = "asker"] "Recoveries not begun because the neighbour that asked does not exist.";
    ProxyBadDatagrams proxy_bad_datagrams User = "bre_proxy_bad_datagrams_total" [] "Datagrams of upstream endpoints that are neither an answer nor a frame.";
    ProxyInflightDedup proxy_inflight_dedup User = "bre_proxy_inflight_dedup_total" [] "Recoveries not started because one of the frame was under way.";
    ProxySkippedAhead proxy_skipped_ahead User = "bre_proxy_skipped_total" [reason = "ahead"] "Recoveries not started because the frame is ahead of what is known of its flow, and one ahead of this flow was asked for less than 30 s before: a tail probe.";
    ProxySkippedAskers proxy_skipped_askers User = "bre_proxy_skipped_total" [reason = "askers"] "Listeners that get no unicast copy of a frame that is being recovered because 64 others get one.";
    ProxyQueueDropped proxy_queue_dropped User = "bre_proxy_queue_dropped_total" [] "Recoveries dropped because too many waited.";
    AdvertsSent adverts_sent User = "bre_beacon_adverts_sent_total" [] "ADVERT beacons sent.";
    AdvertsHeard adverts_heard User = "bre_beacon_adverts_received_total" [] "ADVERTs of other endpoints heard.";
    AdvertsRefused adverts_refused User = "bre_beacon_dropped_total" [reason = "decode_error"] "Datagrams on the beacon groups that are neither ADVERT nor manifest.";
    AdvertsUnusable adverts_unusable User = "bre_beacon_dropped_total" [reason = "unusable"] "ADVERTs of endpoints that cannot be reached.";
    AdvertsOverflow adverts_overflow User = "bre_beacon_dropped_total" [reason = "table_full"] "Endpoints that were heard once and gave way to others in the full table.";
    ManifestsHeard manifests_heard User = "bre_manifests_received_total" [] "Shard manifests heard.";
    ManifestsRefused manifests_refused User = "bre_manifests_dropped_total" [reason = "decode_error"] "Shard manifests that cannot be read.";
    ManifestsForeign manifests_foreign User = "bre_manifests_dropped_total" [reason = "source"] "Shard manifests from a source that is not configured.";
    ManifestsStale manifests_stale User = "bre_manifests_dropped_total" [reason = "stale"] "Shard manifests older than one heard before.";
    ManifestsFull manifests_full User = "bre_manifests_dropped_total" [reason = "too_many_sources"] "Shard manifests with more sources, or from more instances, than are kept.";
    AdvertsDenied adverts_denied User = "bre_control_refused_total" [kind = "advert"] "ADVERTs that were dropped unread because the lists of who may ask refuse their source.";
    ManifestsDenied manifests_denied User = "bre_control_refused_total" [kind = "manifest"] "Shard manifests that were dropped unread because the lists of who may ask refuse their source.";
    UpstreamDenied upstream_denied User = "bre_control_refused_total" [kind = "upstream"] "Answers and frames of upstream endpoints that were dropped unread because the lists of who may ask refuse their source.";
    AclLoaded acl_loaded User = "bre_acl_loads_total" [result = "loaded"] "Lists of who may ask that were put in force, that of the start included.";
    AclRefused acl_refused User = "bre_acl_loads_total" [result = "refused"] "Lists of who may ask that cannot be read or stand: those before stay in force.";
    ResolveErrors resolve_errors User = "bre_resolve_errors_total" [] "DNS names that could not be resolved: the last answer stands.";
    PassedNoSettings passed_no_settings Kernel = "bre_xdp_passed_total" [reason = "no_settings"] "UDP packets passed on because the settings map is not filled.";
    PassedLease passed_lease Kernel = "bre_xdp_passed_total" [reason = "lease"] "NACKs passed on because the daemon stopped renewing its lease.";
    PassedInterface passed_interface Kernel = "bre_xdp_passed_total" [reason = "interface"] "NACKs passed on because they came in by an interface that the kernel does not answer on.";
    PassedSource passed_source Kernel = "bre_xdp_passed_total" [reason = "source"] "NACKs passed on because the stack alone knows what becomes of their source: ::/80 (unspecified, loopback, IPv4 in IPv6), a group, an address of this host, or port 0.";
    PassedMac passed_mac Kernel = "bre_xdp_passed_total" [reason = "mac"] "NACKs passed on because of a MAC: the destination is not the NACK interface's, or the source is no other host's (all zero, a group or our own). The stack drops those for another host.";
    PassedVlan passed_vlan Kernel = "bre_xdp_passed_total" [reason = "vlan"] "NACKs passed on because they have a VLAN tag: the stack drops those of a VLAN without an interface on this host.";
    PassedLength passed_length Kernel = "bre_xdp_passed_total" [reason = "length"] "NACKs passed on because the datagram ends before its IPv6 packet.";
    PassedEventsFull passed_events_full Kernel = "bre_xdp_passed_total" [reason = "events_full"] "NACKs passed on because the event ring was full.";
    HandedOver handed_over Kernel = "bre_xdp_handed_over_total" [] "NACKs that the kernel admitted and gave to the daemon by the event ring: a frame that the daemon alone can send, or a miss to ask the shared store or an upstream for.";
    WatchDropped watch_dropped Both = "bre_watch_dropped_total" [] "Records for retry-endpoint watch that were dropped because it read too slowly.";
    TalkersDropped talkers_dropped Both = "bre_talkers_dropped_total" [] "NACKs drawn for the top talkers that are not in them because the daemon did not come to count them in time.";
    HandoversAdopted handovers_adopted User = "bre_handovers_total" [result = "adopted"] "Starts that took over the frames of an earlier daemon.";
    HandoversReadOver handovers_read_over User = "bre_handovers_total" [result = "read_over"] "Starts that read over the frames of an earlier daemon, because its log had other sizes.";
    HandoversUnfit handovers_unfit User = "bre_handovers_total" [result = "unfit"] "Starts without the frames of an earlier daemon, because what it left did not fit.";
    ConfigReloaded config_reloaded User = "bre_config_reloads_total" [result = "ok"] "Times that settings were read again and something changed, or was found to wait for a restart.";
    ConfigUnchanged config_unchanged User = "bre_config_reloads_total" [result = "unchanged"] "Times that settings were read again and were as before.";
    ConfigRefused config_refused User = "bre_config_reloads_total" [result = "refused"] "Times that settings were read again and refused; nothing changed then.";
    EventsStale events_stale User = "bre_xdp_events_stale_total" [] "NACKs and announcements that the kernel gave to the daemon by the event ring and that the daemon came to more than a second later, most often because they were meant for the daemon before it: dropped.";
    DaemonAbsent daemon_absent Kernel = "bre_xdp_daemon_absent_total" [] "NACKs that wait for the daemon, answered with a MISS by the kernel because the daemon's lease was over.";
    FrameNoPublisher frame_no_publisher User = "bre_frames_dropped_total" [reason = "no_publisher"] "Frames of sources that -publishers does not name: not cached.";
    FrameConflict frame_conflict User = "bre_cache_duplicates_total" [kind = "conflict"] "Frames heard with other bytes than the frame with their key, within -replace-after: the first record stays.";
    AdvertsContested adverts_contested User = "bre_beacon_dropped_total" [reason = "contested"] "ADVERTs with the instance id of an endpoint that is heard, from another address.";
    AdvertsElsewhere adverts_elsewhere User = "bre_beacon_elsewhere_total" [] "ADVERTs whose NACK address is neither the address that they came from nor listed: with -proxy-discover it is not asked.";
    ManifestsAhead manifests_ahead User = "bre_manifests_dropped_total" [reason = "ahead"] "Shard manifests whose epoch is more than five minutes ahead of this host's clock.";
    LimitedSourceBytes limited_source_bytes Both = "bre_rate_limit_drops_total" [level = "source_bytes"] "NACKs whose answer would exceed rl-source-bytes of their address.";
    LimitedTotalBytes limited_total_bytes Both = "bre_rate_limit_drops_total" [level = "total_bytes"] "NACKs whose answer would exceed rl-total-bytes.";
    LimitedUnproven limited_unproven Both = "bre_rate_limit_drops_total" [level = "unproven"] "NACKs whose unicast copy was left out because it is longer than unproven-factor allows for an address that has not shown that it hears us.";
}

/// What an answer counts that left, and what one that could not be sent.
#[inline(always)]
pub const fn of_answer(answer: &Answer) -> (Counter, Counter) {
    match answer {
        Answer::Ack { .. } => (Counter::AcksSent, Counter::AckErrors),
        Answer::Miss => (Counter::MissesSent, Counter::MissErrors),
        Answer::Throttled { .. } => (Counter::ThrottledSent, Counter::ThrottledErrors),
    }
}

/// The help line of a metric whose series have several label values; the others have that of their one series.
const FAMILIES: &[(&str, &str)] = &[
    ("bre_sends_dropped_total", "What the daemon did not send, by reason."),
    ("bre_frames_dropped_total", "Datagrams on the data port that were not cached, by reason."),
    ("bre_cache_duplicates_total", "Frames heard again, by whether their bytes were the same."),
    ("bre_cache_stored_by_total", "Frames stored in the frame log, by how they came."),
    ("bre_cache_evicted_total", "Frames dropped from the frame log, by reason."),
    ("bre_log_repairs_total", "What was found wrong in the frame log and mended, by kind."),
    ("bre_fill_kernel_left_total", "Plain frames heard by multicast that the kernel left to the daemon, by reason."),
    ("bre_nack_dropped_total", "Datagrams to the NACK port that are no NACK, by reason."),
    (
        "bre_nack_refused_total",
        "Datagrams to the NACK port that were dropped unread because of who sent them, by reason.",
    ),
    (
        "bre_control_refused_total",
        "Datagrams of other endpoints, publishers and upstreams that were dropped unread because of who sent them, by kind.",
    ),
    ("bre_acl_loads_total", "Times that the lists of who may ask were read, by what became of them."),
    ("bre_responses_sent_total", "Answers sent, by type."),
    ("bre_response_send_errors_total", "Answers that could not be sent, by type."),
    ("bre_rate_limit_drops_total", "NACKs over a limit, by level."),
    ("bre_tee_datagrams_total", "Datagrams on the tee socket, by form."),
    ("bre_store_frames_lost_total", "Frames not written to the shared store, by reason."),
    ("bre_store_lookups_total", "NACKs for which the shared store was asked, and those it had no answer for in time."),
    ("bre_dedup_repairs_total", "Multicast repairs that instances told each other of, by direction."),
    ("bre_dedup_errors_total", "Multicast repairs that dedup between instances missed, by reason."),
    ("bre_proxy_failed_total", "Recoveries from upstream given up, by reason."),
    ("bre_proxy_skipped_total", "What recovery left out on purpose, by reason."),
    ("bre_beacon_dropped_total", "Datagrams on the beacon groups that came to nothing, by reason."),
    ("bre_manifests_dropped_total", "Shard manifests that came to nothing, by reason."),
    ("bre_handovers_total", "Starts beside what an earlier daemon had left, by what became of its frames."),
    (
        "bre_config_reloads_total",
        "Times that settings were read again, by SIGHUP or the management API, by what came of it.",
    ),
    ("bre_xdp_passed_total", "Packets to the NACK port that the kernel passed on to the daemon's socket, by reason."),
];

impl Counter {
    /// The help line of its metric.
    pub fn help(self) -> &'static str {
        let series = self.series();
        FAMILIES.iter().find(|(name, _)| *name == series.name).map_or(series.help, |(_, help)| help)
    }
}

impl Default for Counters {
    fn default() -> Self {
        Self::ZERO
    }
}

impl Counters {
    /// The sum of two blocks, as of two CPUs or two paths.
    #[must_use]
    pub fn plus(mut self, other: &Self) -> Self {
        for counter in Counter::ALL {
            let place = self.get_mut(*counter);
            *place = place.wrapping_add(other.get(*counter));
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_counter_has_a_place_and_a_series_of_its_own() {
        assert_eq!(size_of::<Counters>(), ROOM * 8);
        for (i, a) in Counter::ALL.iter().enumerate() {
            let mut block = Counters::default();
            *block.get_mut(*a) = 1;
            for b in Counter::ALL {
                assert_eq!(block.get(*b), u64::from(a == b));
            }
            let series = a.series();
            assert!(series.name.starts_with("bre_") && series.name.ends_with("_total"));
            for b in Counter::ALL.iter().skip(i + 1) {
                assert!(series.name != b.series().name || series.labels != b.series().labels, "{series:?} twice");
            }
        }
    }

    #[test]
    fn a_metric_of_several_series_has_a_help_line_of_its_own() {
        for counter in Counter::ALL {
            let name = counter.series().name;
            let series = Counter::ALL.iter().filter(|other| other.series().name == name).count();
            let has_own = FAMILIES.iter().any(|(family, _)| *family == name);
            assert_eq!(has_own, series > 1, "{name}");
        }
    }

    #[test]
    fn blocks_add_up() {
        let (mut a, mut b) = (Counters::default(), Counters::default());
        *a.get_mut(Counter::CacheHits) = 3;
        *b.get_mut(Counter::CacheHits) = 4;
        *b.get_mut(Counter::AcksSent) = 1;
        let sum = a.plus(&b);
        assert_eq!((sum.cache_hits, sum.acks_sent, sum.cache_misses), (7, 1, 0));
    }
}
