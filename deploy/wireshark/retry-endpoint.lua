-- Wireshark dissector for every datagram of docs/wire-format.md: frames, NACK, ACK, MISS, THROTTLED, ADVERT, shard manifest
-- and tee envelope. Wireshark 4.0 or later.
--
--   wireshark -X lua_script:deploy/wireshark/retry-endpoint.lua fabric.pcap
--   tshark -X lua_script:deploy/wireshark/retry-endpoint.lua -r fabric.pcap -Y 'bre.hash_key == 0x094a37237fc078ba && bre.seq_num == 3'
--
-- A datagram that the endpoint refuses has the field bre.error, with the endpoint's own words. The test
-- retry-common/tests/wireshark.rs holds each field to what the endpoint reads.

local bre = Proto("bre", "Retry endpoint")

local MAGIC = 0xE3E1F3E8
local TEE_MAGIC = 0x54454531

bre.prefs.data_port = Pref.uint("Data port", 9001, "UDP port of frames and repairs (-listen-port)")
bre.prefs.nack_port = Pref.uint("NACK port", 9300, "UDP port of NACKs, answers and beacons (-nack-port)")
bre.prefs.shard_bits = Pref.uint("Shard bits", 2, "Leading bits of a TxID that choose its group (-shard-bits)")
bre.prefs.beef_shard_bits = Pref.uint("BEEF shard bits", 0, "The same of a TopicID (-beef-shard-bits)")

local TYPES = {
    [0x01] = "Frame V1 (legacy)", [0x02] = "Frame V2 (transaction)", [0x03] = "Frame V3 (fragment)",
    [0x04] = "Frame V4 (block)", [0x05] = "Frame V5 (subtree data)", [0x06] = "Frame V6 (anchor)",
    [0x08] = "Frame V8 (bundle)", [0x09] = "Frame V9 (BEEF)",
    [0x10] = "NACK", [0x11] = "MISS", [0x12] = "ACK", [0x13] = "THROTTLED", [0x20] = "ADVERT", [0x40] = "Shard manifest",
}
local SCOPES = { [0x05] = "site", [0x08] = "org", [0x0E] = "global", [0xFF] = "all" }
local ROLES = {
    [0] = "generic", [1] = "proxy", [2] = "listener", [3] = "retry endpoint", [4] = "producer", [5] = "manifest only",
}
-- What a fragment may be of. 0 and 2 are transactions.
local ORIGINALS = { [0] = 2, [2] = 2, [4] = 4, [5] = 5, [6] = 6, [9] = 9 }
local CLASSES = { [2] = "tx", [4] = "block", [5] = "subtree", [6] = "anchor", [8] = "tx", [9] = "beef" }

local f = {
    magic = ProtoField.uint32("bre.magic", "Magic", base.HEX),
    proto = ProtoField.uint16("bre.proto", "Protocol version", base.HEX),
    kind = ProtoField.uint8("bre.type", "Type or frame version", base.HEX, TYPES),
    hash_key = ProtoField.uint64("bre.hash_key", "HashKey", base.HEX),
    seq_num = ProtoField.uint64("bre.seq_num", "SeqNum", base.DEC),
    error = ProtoField.string("bre.error", "Refused"),
    group = ProtoField.uint16("bre.group", "Sent to group index", base.HEX),

    byte7 = ProtoField.uint8("bre.frame.byte7", "MsgType or flags", base.DEC),
    ident = ProtoField.bytes("bre.frame.ident", "TxID, ContentID or SubtreeID"),
    scope = ProtoField.bytes("bre.frame.scope", "SubtreeID or TopicID"),
    payload_len = ProtoField.uint32("bre.frame.payload_len", "Payload length", base.DEC),
    header_len = ProtoField.uint32("bre.frame.header_len", "Header length", base.DEC),
    class = ProtoField.string("bre.frame.class", "Class"),
    group_index = ProtoField.uint16("bre.frame.group_index", "Group index of repairs", base.HEX),
    payload = ProtoField.bytes("bre.frame.payload", "Payload"),
    trailer = ProtoField.bytes("bre.frame.trailer", "Bytes after the payload"),
    original_len = ProtoField.uint32("bre.fragment.original_len", "Original length", base.DEC),
    frag_index = ProtoField.uint16("bre.fragment.index", "FragIndex", base.DEC),
    frag_total = ProtoField.uint16("bre.fragment.total", "FragTotal", base.DEC),
    original_version = ProtoField.uint8("bre.fragment.original_version", "OrigFrameVer", base.DEC),
    bundle_group = ProtoField.uint16("bre.bundle.group_index", "GroupIdx", base.HEX),
    bundle_bits = ProtoField.uint8("bre.bundle.shard_bits", "ShardBits", base.DEC),
    tx_count = ProtoField.uint16("bre.bundle.tx_count", "TxCount", base.DEC),
    has_tx_ids = ProtoField.bool("bre.bundle.has_tx_ids", "Members carry their TxID", 8, nil, 0x01),
    member_len = ProtoField.uint16("bre.bundle.member.length", "Member length", base.DEC),
    member_tx_id = ProtoField.bytes("bre.bundle.member.tx_id", "TxID"),
    member = ProtoField.bytes("bre.bundle.member.transaction", "Transaction"),

    nack_flags = ProtoField.uint8("bre.nack.flags", "Flags", base.HEX),
    proxied = ProtoField.bool("bre.nack.proxied", "Proxied", 8, nil, 0x01),
    end_seq = ProtoField.uint64("bre.nack.end_seq", "EndSeq", base.DEC),
    subtree_id = ProtoField.bytes("bre.nack.subtree_id", "SubtreeID"),
    answered_in = ProtoField.framenum("bre.nack.answered_in", "Answered in", base.NONE, frametype.RESPONSE),

    answer_flags = ProtoField.uint8("bre.answer.flags", "Flags", base.HEX),
    multicast = ProtoField.bool("bre.ack.multicast", "Sent by multicast", 8, nil, 0x01),
    unicast = ProtoField.bool("bre.ack.unicast", "Sent by unicast", 8, nil, 0x02),
    bucket = ProtoField.uint8("bre.throttled.bucket", "Backoff bucket", base.DEC, nil, 0x0F),
    hold = ProtoField.uint32("bre.throttled.hold_ms", "Hold, milliseconds", base.DEC),
    answer_to = ProtoField.framenum("bre.answer.to", "Answer to", base.NONE, frametype.REQUEST),
    answer_time = ProtoField.double("bre.answer.time_ms", "Time since the NACK, milliseconds"),

    advert_scope = ProtoField.uint8("bre.advert.scope", "Scope", base.HEX, SCOPES),
    nack_addr = ProtoField.ipv6("bre.advert.nack_addr", "NACK address"),
    nack_port = ProtoField.uint16("bre.advert.nack_port", "NACK port", base.DEC),
    tier = ProtoField.uint8("bre.advert.tier", "Tier", base.DEC),
    preference = ProtoField.uint8("bre.advert.preference", "Preference", base.DEC),
    advert_interval = ProtoField.uint16("bre.advert.interval_s", "Interval, seconds", base.DEC),
    advert_flags = ProtoField.uint16("bre.advert.flags", "Flags", base.HEX),
    has_parent = ProtoField.bool("bre.advert.has_parent", "HasParent", 16, nil, 0x0002),
    draining = ProtoField.bool("bre.advert.draining", "Draining", 16, nil, 0x0004),
    by_unicast = ProtoField.bool("bre.advert.unicast", "Unicast", 16, nil, 0x0008),
    by_multicast = ProtoField.bool("bre.advert.multicast", "Multicast", 16, nil, 0x0010),
    advert_instance = ProtoField.uint32("bre.advert.instance_id", "Instance id", base.HEX),
    reserved = ProtoField.bytes("bre.advert.reserved", "Reserved"),

    manifest_flags = ProtoField.uint8("bre.manifest.flags", "Flags", base.HEX),
    mf_groups = ProtoField.bool("bre.manifest.flag.groups", "Groups", 8, nil, 0x01),
    mf_authoritative = ProtoField.bool("bre.manifest.flag.authoritative", "Authoritative", 8, nil, 0x02),
    mf_shutdown = ProtoField.bool("bre.manifest.flag.shutdown", "Shutdown", 8, nil, 0x04),
    mf_ssm = ProtoField.bool("bre.manifest.flag.ssm", "SSM", 8, nil, 0x08),
    mf_sources = ProtoField.bool("bre.manifest.flag.sources", "Sources", 8, nil, 0x10),
    mf_pilot = ProtoField.bool("bre.manifest.flag.pilot", "Pilot", 8, nil, 0x20),
    mf_successor = ProtoField.bool("bre.manifest.flag.successor", "Successor", 8, nil, 0x40),
    mf_domains = ProtoField.bool("bre.manifest.flag.domains", "Domains", 8, nil, 0x80),
    manifest_from = ProtoField.ipv6("bre.manifest.from", "Sender"),
    manifest_instance = ProtoField.uint32("bre.manifest.instance_id", "Instance id", base.HEX),
    epoch = ProtoField.uint32("bre.manifest.epoch_s", "Epoch, seconds of Unix time", base.DEC),
    ttl = ProtoField.uint16("bre.manifest.ttl_s", "Life, seconds", base.DEC),
    manifest_interval = ProtoField.uint16("bre.manifest.interval_s", "Interval, seconds", base.DEC),
    manifest_bits = ProtoField.uint8("bre.manifest.shard_bits", "Shard bits", base.DEC),
    role = ProtoField.uint8("bre.manifest.role", "Role", base.DEC, ROLES),
    group_count = ProtoField.uint16("bre.manifest.group_count", "Groups in the list", base.DEC),
    bitmap_len = ProtoField.uint16("bre.manifest.bitmap_len", "Bytes of the bitmap", base.DEC),
    source_count = ProtoField.uint16("bre.manifest.source_count", "Sources", base.DEC),
    crc = ProtoField.uint32("bre.manifest.crc", "CRC-32C", base.HEX),
    generation = ProtoField.bytes("bre.manifest.generation_id", "Generation id"),
    manifest_group = ProtoField.uint16("bre.manifest.group", "Group index", base.HEX),
    manifest_source = ProtoField.ipv6("bre.manifest.source", "Source"),
    next_generation = ProtoField.bytes("bre.manifest.successor.generation_id", "Successor's generation id"),
    next_bits = ProtoField.uint8("bre.manifest.successor.shard_bits", "Successor's shard bits", base.DEC),
    next_flags = ProtoField.uint8("bre.manifest.successor.flags", "Successor's flags", base.HEX),
    transition = ProtoField.uint32("bre.manifest.successor.transition_s", "Transition, seconds of Unix time", base.DEC),
    rest = ProtoField.bytes("bre.manifest.rest", "What follows"),

    tee_magic = ProtoField.uint32("bre.tee.magic", "Magic of the envelope", base.HEX),
    tee_version = ProtoField.uint8("bre.tee.version", "Envelope version", base.DEC),
    tee_flags = ProtoField.uint8("bre.tee.flags", "Envelope flags", base.HEX),
    tee_source = ProtoField.ipv6("bre.tee.source", "Original source"),
    tee_port = ProtoField.uint16("bre.tee.source_port", "Original source port", base.DEC),
}
do
    local all = {}
    for _, field in pairs(f) do all[#all + 1] = field end
    bre.fields = all
end

local refused_expert = ProtoExpert.new("bre.refused", "An endpoint refuses this datagram", expert.group.MALFORMED, expert.severity.WARN)
bre.experts = { refused_expert }

local ipv6_dst = Field.new("ipv6.dst")

-- Numbers of NACKs by the asking address and port, and of their answers: filled in the first pass.
local asked, answers, answered = {}, {}, {}

function bre.init()
    asked, answers, answered = {}, {}, {}
end

-- Why a datagram is refused: shown, and nothing more is read.
local function refuse(tree, tvb, why)
    tree:add(f.error, tvb(), why):set_generated()
    tree:add_proto_expert_info(refused_expert, why)
    return why
end

-- CRC-32C (Castagnoli), as a signed number, as `bit` makes them.
local crc_table
local function crc32c(tvb, skip)
    if not crc_table then
        crc_table = {}
        for byte = 0, 255 do
            local crc = byte
            for _ = 1, 8 do
                if bit.band(crc, 1) ~= 0 then
                    crc = bit.bxor(bit.rshift(crc, 1), 0x82F63B78)
                else
                    crc = bit.rshift(crc, 1)
                end
            end
            crc_table[byte] = crc
        end
    end
    local bytes, crc = tvb:bytes(), bit.bnot(0)
    for at = 0, bytes:len() - 1 do
        local byte = bytes:get_index(at)
        -- Its own four bytes count as zero.
        if at >= skip and at < skip + 4 then byte = 0 end
        crc = bit.bxor(bit.rshift(crc, 8), crc_table[bit.band(bit.bxor(crc, byte), 0xFF)])
    end
    return bit.bnot(crc)
end

local function top_bits(tvb, offset, bits)
    if bits < 1 or bits > 12 then return 0 end
    return bit.rshift(tvb(offset, 2):uint(), 16 - bits)
end

-- The members of a bundle fill their section exactly as told, or false.
local function members(tvb, tree, at, last, count, has_tx_ids)
    for _ = 1, count do
        if at + 2 > last then return false end
        local length, start = tvb(at, 2):uint(), at
        at = at + 2
        local tx_id = at
        if has_tx_ids then at = at + 32 end
        if at + length > last then return false end
        if tree then
            local item = tree:add(f.member_len, tvb(start, 2))
            if has_tx_ids then item:add(f.member_tx_id, tvb(tx_id, 32)) end
            if length > 0 then item:add(f.member, tvb(at, length)) end
        end
        at = at + length
    end
    return at == last
end

local HEADERS = { [1] = 44, [2] = 92, [3] = 104, [4] = 92, [5] = 92, [6] = 92, [8] = 66, [9] = 92 }
local LENGTH_AT = { [1] = 40, [8] = 62 }

-- Fields are shown as far as they are there; the order of the refusals is the endpoint's.
local function frame(tvb, tree)
    local length = tvb:len()
    if length < 4 then return refuse(tree, tvb, "shorter than its header") end
    tree:add(f.magic, tvb(0, 4))
    if tvb(0, 4):uint() ~= MAGIC then return refuse(tree, tvb, "the magic is not the fabric's") end
    if length < 8 then return refuse(tree, tvb, "shorter than its header") end
    tree:add(f.proto, tvb(4, 2))
    tree:add(f.kind, tvb(6, 1))
    tree:add(f.byte7, tvb(7, 1))
    local version, byte7 = tvb(6, 1):uint(), tvb(7, 1):uint()
    local header = HEADERS[version]
    if not header then return refuse(tree, tvb, "unknown frame version") end
    if length < 40 or length < header then return refuse(tree, tvb, "shorter than its header") end
    tree:add(f.ident, tvb(8, 32))
    if version ~= 1 then
        tree:add(f.hash_key, tvb(40, 8))
        tree:add(f.seq_num, tvb(48, 8))
    end
    if version ~= 1 and version ~= 8 then tree:add(f.scope, tvb(56, 32)) end
    local length_at = LENGTH_AT[version] or 88
    local payload = tvb(length_at, 4):uint()
    tree:add(f.payload_len, tvb(length_at, 4))
    tree:add(f.header_len, header):set_generated()
    local original, group = version, nil
    if version == 3 then
        tree:add(f.original_len, tvb(92, 4))
        tree:add(f.frag_index, tvb(96, 2))
        tree:add(f.frag_total, tvb(98, 2))
        tree:add(f.original_version, tvb(100, 1))
        original = ORIGINALS[tvb(100, 1):uint()]
    elseif version == 8 then
        tree:add(f.has_tx_ids, tvb(7, 1))
        tree:add(f.bundle_group, tvb(56, 2))
        tree:add(f.bundle_bits, tvb(58, 1))
        tree:add(f.tx_count, tvb(60, 2))
        group = tvb(56, 2):uint()
    end
    if payload > length - header then return refuse(tree, tvb, "the payload is longer than the datagram") end
    if (version == 4 or version == 5) and byte7 ~= 1 and byte7 ~= 2 then
        return refuse(tree, tvb, "unknown message type")
    end
    if version == 3 then
        if tvb(96, 2):uint() >= tvb(98, 2):uint() then
            return refuse(tree, tvb, "the fragment's number is not below the number of fragments")
        end
        if not original then return refuse(tree, tvb, "a fragment of a version that is not fragmented") end
    end
    if version == 8 then
        local count, has_tx_ids = tvb(60, 2):uint(), bit.band(byte7, 1) ~= 0
        if not members(tvb, nil, header, header + payload, count, has_tx_ids) then
            return refuse(tree, tvb, "the bundle's members do not fit their section")
        end
        members(tvb, tree, header, header + payload, count, has_tx_ids)
    elseif payload > 0 then
        tree:add(f.payload, tvb(header, payload))
    end
    if length > header + payload then tree:add(f.trailer, tvb(header + payload)) end
    if CLASSES[original] then tree:add(f.class, CLASSES[original]):set_generated() end
    if original == 2 then
        group = top_bits(tvb, 8, bre.prefs.shard_bits)
    elseif original == 4 or original == 6 then
        group = 0xFFFE
    elseif original == 5 then
        group = 0xFFFB
    elseif original == 9 then
        group = 0x1000 + top_bits(tvb, 56, bre.prefs.beef_shard_bits)
    end
    if group then tree:add(f.group_index, group):set_generated() end
    local text = TYPES[version]
    if version ~= 1 then text = text .. " " .. tvb(40, 8):bytes():tohex(true) .. ":" .. tvb(48, 8):uint64() end
    if version == 3 then text = text .. ", fragment " .. tvb(96, 2):uint() + 1 .. " of " .. tvb(98, 2):uint() end
    return text
end

local function head(tvb, tree)
    tree:add(f.magic, tvb(0, 4))
    tree:add(f.proto, tvb(4, 2))
    tree:add(f.kind, tvb(6, 1))
end

local function address(host, port)
    return tostring(host) .. " " .. port
end

local function nack(tvb, tree, pinfo)
    head(tvb, tree)
    if tvb:len() ~= 64 then return refuse(tree, tvb, "a NACK has 64 bytes") end
    local flags = tree:add(f.nack_flags, tvb(7, 1))
    flags:add(f.proxied, tvb(7, 1))
    tree:add(f.hash_key, tvb(8, 8))
    tree:add(f.seq_num, tvb(16, 8))
    tree:add(f.end_seq, tvb(24, 8))
    tree:add(f.subtree_id, tvb(32, 32))
    if tvb(16, 8):uint64() ~= tvb(24, 8):uint64() then return refuse(tree, tvb, "EndSeq differs from StartSeq") end
    if not pinfo.visited then
        asked[address(pinfo.src, pinfo.src_port)] = { number = pinfo.number, time = pinfo.abs_ts }
    end
    if answered[pinfo.number] then tree:add(f.answered_in, answered[pinfo.number]):set_generated() end
    local proxied = bit.band(tvb(7, 1):uint(), 1) ~= 0 and ", proxied" or ""
    return "NACK " .. tvb(8, 8):bytes():tohex(true) .. ":" .. tvb(16, 8):uint64() .. proxied
end

local function answer(tvb, tree, pinfo)
    head(tvb, tree)
    if tvb:len() ~= 16 then return refuse(tree, tvb, "an answer has 16 bytes") end
    local kind, bits = tvb(6, 1):uint(), tvb(7, 1):uint()
    local flags, text = tree:add(f.answer_flags, tvb(7, 1)), TYPES[kind]
    if kind == 0x12 then
        flags:add(f.multicast, tvb(7, 1))
        flags:add(f.unicast, tvb(7, 1))
        local ways = { [0] = "neither way", [1] = "multicast", [2] = "unicast", [3] = "multicast and unicast" }
        text = text .. " " .. tvb(8, 8):uint64() .. ", sent by " .. ways[bit.band(bits, 3)]
    elseif kind == 0x13 then
        flags:add(f.bucket, tvb(7, 1))
        local hold = bit.lshift(125, bit.band(bits, 0x0F))
        tree:add(f.hold, hold):set_generated()
        text = text .. " " .. tvb(8, 8):uint64() .. ", hold for " .. hold .. " ms"
    end
    tree:add(f.seq_num, tvb(8, 8))
    if not pinfo.visited then
        local to = asked[address(pinfo.dst, pinfo.dst_port)]
        if to then
            answers[pinfo.number] = { number = to.number, time = (pinfo.abs_ts - to.time) * 1000 }
            answered[to.number] = answered[to.number] or pinfo.number
        end
    end
    local to = answers[pinfo.number]
    if to then
        tree:add(f.answer_to, to.number):set_generated()
        tree:add(f.answer_time, to.time):set_generated()
    end
    return text
end

local function advert(tvb, tree)
    head(tvb, tree)
    if tvb:len() ~= 56 then return refuse(tree, tvb, "an ADVERT has 56 bytes") end
    tree:add(f.advert_scope, tvb(7, 1))
    tree:add(f.nack_addr, tvb(8, 16))
    tree:add(f.nack_port, tvb(24, 2))
    tree:add(f.tier, tvb(26, 1))
    tree:add(f.preference, tvb(27, 1))
    tree:add(f.advert_interval, tvb(28, 2))
    local flags = tree:add(f.advert_flags, tvb(30, 2))
    for _, flag in ipairs({ f.has_parent, f.draining, f.by_unicast, f.by_multicast }) do flags:add(flag, tvb(30, 2)) end
    tree:add(f.advert_instance, tvb(32, 4))
    tree:add(f.reserved, tvb(36, 20))
    local draining = bit.band(tvb(30, 2):uint(), 0x0004) ~= 0 and ", draining" or ""
    return "ADVERT [" .. tostring(tvb(8, 16):ipv6()) .. "]:" .. tvb(24, 2):uint() .. ", tier " .. tvb(26, 1):uint()
        .. ", preference " .. tvb(27, 1):uint() .. draining
end

local function manifest(tvb, tree)
    local length = tvb:len()
    head(tvb, tree)
    if length < 64 then return refuse(tree, tvb, "shorter than its sections") end
    local bits = tvb(7, 1):uint()
    local flags = tree:add(f.manifest_flags, tvb(7, 1))
    for _, flag in ipairs({
        f.mf_groups, f.mf_authoritative, f.mf_shutdown, f.mf_ssm, f.mf_sources, f.mf_pilot, f.mf_successor, f.mf_domains,
    }) do
        flags:add(flag, tvb(7, 1))
    end
    tree:add(f.manifest_from, tvb(8, 16))
    tree:add(f.manifest_instance, tvb(24, 4))
    tree:add(f.epoch, tvb(28, 4))
    tree:add(f.ttl, tvb(32, 2))
    tree:add(f.manifest_interval, tvb(34, 2))
    tree:add(f.manifest_bits, tvb(36, 1))
    tree:add(f.role, tvb(37, 1))
    tree:add(f.group_count, tvb(38, 2))
    tree:add(f.bitmap_len, tvb(40, 2))
    tree:add(f.source_count, tvb(42, 2))
    tree:add(f.crc, tvb(44, 4))
    tree:add(f.generation, tvb(48, 16))
    if bit.tobit(crc32c(tvb, 44)) ~= bit.tobit(tvb(44, 4):uint()) then return refuse(tree, tvb, "the CRC is wrong") end

    local groups, bitmap, sources = tvb(38, 2):uint(), tvb(40, 2):uint(), tvb(42, 2):uint()
    local at = 64
    local has_groups = bit.band(bits, 0x01) ~= 0
    if has_groups ~= (groups > 0 or bitmap > 0) or (groups > 0 and bitmap > 0) then
        return refuse(tree, tvb, "not exactly one form of groups")
    end
    if at + 2 * groups + bitmap > length then return refuse(tree, tvb, "shorter than its sections") end
    for number = 0, groups - 1 do tree:add(f.manifest_group, tvb(at + 2 * number, 2)) end
    local shard_bits = tvb(36, 1):uint()
    -- Bits beyond the shard bits are ignored (BRC-139).
    local last = shard_bits < 16 and bit.lshift(1, shard_bits) - 1 or 0xFFFF
    for index = 0, math.min(8 * bitmap - 1, last) do
        local byte = tvb(at + math.floor(index / 8), 1)
        if bit.band(bit.rshift(byte:uint(), index % 8), 1) ~= 0 then tree:add(f.manifest_group, byte, index) end
    end
    at = at + 2 * groups + bitmap
    if (bit.band(bits, 0x10) ~= 0) ~= (sources > 0) then
        return refuse(tree, tvb, "the flag of the sources and their number disagree")
    end
    if at + 16 * sources > length then return refuse(tree, tvb, "shorter than its sections") end
    for _ = 1, sources do
        tree:add(f.manifest_source, tvb(at, 16))
        at = at + 16
    end
    if bit.band(bits, 0x40) ~= 0 then
        if at + 24 > length then return refuse(tree, tvb, "shorter than its sections") end
        tree:add(f.next_generation, tvb(at, 16))
        tree:add(f.next_bits, tvb(at + 16, 1))
        tree:add(f.next_flags, tvb(at + 17, 1))
        tree:add(f.transition, tvb(at + 20, 4))
        at = at + 24
    end
    if at < length then tree:add(f.rest, tvb(at)) end
    local shutdown = bit.band(bits, 0x04) ~= 0 and ", shutdown" or ""
    return "Shard manifest of " .. tostring(tvb(8, 16):ipv6()) .. ", " .. sources .. " sources" .. shutdown
end

local READERS = { [0x10] = nack, [0x11] = answer, [0x12] = answer, [0x13] = answer, [0x20] = advert, [0x40] = manifest }

-- A datagram by its type; what has none is read as a frame, which says what is wrong.
local function datagram(tvb, tree, pinfo)
    local is_ours = tvb:len() >= 7 and tvb(0, 4):uint() == MAGIC
    local reader = is_ours and READERS[tvb(6, 1):uint()]
    if reader then return reader(tvb, tree, pinfo) end
    return frame(tvb, tree)
end

-- The envelope, and the frame in it.
local function tee(tvb, tree, pinfo)
    tree:add(f.tee_magic, tvb(0, 4))
    if tvb:len() < 24 then return refuse(tree, tvb, "a tee envelope has 24 bytes") end
    tree:add(f.tee_version, tvb(4, 1))
    tree:add(f.tee_flags, tvb(5, 1))
    tree:add(f.tee_source, tvb(6, 16))
    tree:add(f.tee_port, tvb(22, 2))
    if tvb(4, 1):uint() ~= 1 then return refuse(tree, tvb, "unknown version of the tee envelope") end
    if tvb:len() == 24 then return "Tee: " .. refuse(tree, tvb, "shorter than its header") end
    local inner = tvb(24):tvb()
    return "Tee: " .. frame(inner, tree:add(bre, inner(), "Frame"), pinfo)
end

function bre.dissector(tvb, pinfo, root)
    if tvb:len() == 0 then return 0 end
    pinfo.cols.protocol = "BRE"
    local tree = root:add(bre, tvb())
    local to = ipv6_dst()
    if to and to.range(0, 1):uint() == 0xFF then
        tree:add(f.group, to.range(14, 2):uint()):set_generated()
    end
    local is_tee = tvb:len() >= 4 and tvb(0, 4):uint() == TEE_MAGIC
    local text = (is_tee and tee or datagram)(tvb, tree, pinfo)
    pinfo.cols.info = text
    tree:append_text(", " .. text)
    return tvb:len()
end

-- Datagrams on other ports: a NACK port of one's own, the tee socket, answers whose NACK was not captured.
local function by_magic(tvb, pinfo, root)
    if tvb:len() < 4 then return false end
    local magic = tvb(0, 4):uint()
    if magic ~= MAGIC and magic ~= TEE_MAGIC then return false end
    bre.dissector(tvb, pinfo, root)
    return true
end
bre:register_heuristic("udp", by_magic)

local ports = {}
local function register()
    local udp = DissectorTable.get("udp.port")
    for port in pairs(ports) do udp:remove(port, bre) end
    ports = { [bre.prefs.data_port] = true, [bre.prefs.nack_port] = true }
    for port in pairs(ports) do udp:add(port, bre) end
end

function bre.prefs_changed()
    register()
end
register()
