# SPDX-License-Identifier: Apache-2.0
"""The feature bits that vhost-user peers negotiate, and their names for people.

Constants only; anyone may import it. Sources: virtio 1.2 sections 2.1 (status), 5.1.3 (network device) and 6
(reserved bits); linux/vhost_types.h (LOG_ALL); QEMU docs/interop/vhost-user.rst (bit 30, protocol features).
"""

from __future__ import annotations

from enum import IntFlag


class Feature(IntFlag):
    """Feature bits of GET_FEATURES / SET_FEATURES: virtio-net's, the rings' and vhost's own two."""

    CSUM = 1 << 0
    GUEST_CSUM = 1 << 1
    CTRL_GUEST_OFFLOADS = 1 << 2
    MTU = 1 << 3
    MAC = 1 << 5
    GUEST_TSO4 = 1 << 7
    GUEST_TSO6 = 1 << 8
    GUEST_ECN = 1 << 9
    GUEST_UFO = 1 << 10
    HOST_TSO4 = 1 << 11
    HOST_TSO6 = 1 << 12
    HOST_ECN = 1 << 13
    HOST_UFO = 1 << 14
    MRG_RXBUF = 1 << 15
    STATUS = 1 << 16
    CTRL_VQ = 1 << 17
    CTRL_RX = 1 << 18
    CTRL_VLAN = 1 << 19
    GUEST_ANNOUNCE = 1 << 21
    MQ = 1 << 22
    CTRL_MAC_ADDR = 1 << 23
    NOTIFY_ON_EMPTY = 1 << 24
    LOG_ALL = 1 << 26
    ANY_LAYOUT = 1 << 27
    INDIRECT_DESC = 1 << 28
    EVENT_IDX = 1 << 29
    PROTOCOL_FEATURES = 1 << 30
    VERSION_1 = 1 << 32
    ACCESS_PLATFORM = 1 << 33
    RING_PACKED = 1 << 34
    IN_ORDER = 1 << 35
    ORDER_PLATFORM = 1 << 36
    NOTIFICATION_DATA = 1 << 38
    RING_RESET = 1 << 40
    GUEST_USO4 = 1 << 54
    GUEST_USO6 = 1 << 55
    HOST_USO = 1 << 56
    HASH_REPORT = 1 << 57
    RSS = 1 << 60


class ProtocolFeature(IntFlag):
    """Feature bits of GET_PROTOCOL_FEATURES / SET_PROTOCOL_FEATURES."""

    MQ = 1 << 0
    LOG_SHMFD = 1 << 1
    RARP = 1 << 2
    REPLY_ACK = 1 << 3
    NET_MTU = 1 << 4
    BACKEND_REQ = 1 << 5
    CROSS_ENDIAN = 1 << 6
    CRYPTO_SESSION = 1 << 7
    PAGEFAULT = 1 << 8
    CONFIG = 1 << 9
    BACKEND_SEND_FD = 1 << 10
    HOST_NOTIFIER = 1 << 11
    INFLIGHT_SHMFD = 1 << 12
    RESET_DEVICE = 1 << 13
    INBAND_NOTIFICATIONS = 1 << 14
    CONFIGURE_MEM_SLOTS = 1 << 15
    STATUS = 1 << 16


class DeviceStatus(IntFlag):
    """The virtio device status byte that SET_STATUS and GET_STATUS carry (virtio 1.2, 2.1)."""

    ACKNOWLEDGE = 1
    DRIVER = 2
    DRIVER_OK = 4
    FEATURES_OK = 8
    NEEDS_RESET = 64
    FAILED = 128


def bit_names(flags: type[IntFlag], mask: int) -> list[str]:
    """Lower-case names of the bits set in `mask`, lowest first; unknown bits as `bit_N`."""
    known = {int(flag): flag.name for flag in flags}
    bits = (bit for bit in range(mask.bit_length()) if mask >> bit & 1)
    return [(known.get(1 << bit) or f"bit_{bit}").lower() for bit in bits]


def feature_names(mask: int) -> list[str]:
    """Names of virtio and vhost feature bits, such as "mrg_rxbuf" and "version_1"."""
    return bit_names(Feature, mask)


def protocol_feature_names(mask: int) -> list[str]:
    """Names of vhost-user protocol feature bits, such as "reply_ack"."""
    return bit_names(ProtocolFeature, mask)
