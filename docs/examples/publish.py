#!/usr/bin/env python3
"""Multicasts numbered transaction frames (FrameVer 2, BRC-124) of one flow to group 0 of a fabric."""

import argparse
import socket
import struct
import time

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("interface", help="where the frames leave")
parser.add_argument("flow", type=lambda text: int(text, 16), help="HashKey, hexadecimal")
parser.add_argument("first", type=int, help="number of the first frame, from 1")
parser.add_argument("last", type=int, help="number of the last frame")
parser.add_argument("--group", default="ff05::b:0", help="where to (%(default)s)")
parser.add_argument("--pause", type=float, default=0.01, help="seconds between two frames (%(default)s)")
arguments = parser.parse_args()

out = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
out.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, socket.if_nametoindex(arguments.interface))
out.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 16)
for number in range(arguments.first, arguments.last + 1):
    payload = f"frame {number} of flow {arguments.flow:016x}\n".encode() * 10
    # docs/wire-format.md: magic, protocol version, FrameVer, reserved, TxID, HashKey, SeqNum, SubtreeID, payload length.
    # The highest bits of the TxID name the group: here 0.
    txid = struct.pack("!24xQ", number)
    header = struct.pack("!IHBB32sQQ32sI", 0xE3E1F3E8, 0x02BF, 2, 0, txid, arguments.flow, number, bytes(32), len(payload))
    out.sendto(header + payload, (arguments.group, 9001))
    time.sleep(arguments.pause)
print(f"{arguments.last - arguments.first + 1} frames left")
