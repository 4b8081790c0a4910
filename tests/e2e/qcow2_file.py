# SPDX-License-Identifier: BSD-3-Clause
"""Reading and damaging the structures of a qcow2 file, for tests with broken images."""
import struct

# Header fields: offset in the file, format of struct.
FIELDS = {
    "magic": (0, ">I"), "version": (4, ">I"), "backing_offset": (8, ">Q"), "backing_length": (16, ">I"),
    "cluster_bits": (20, ">I"), "size": (24, ">Q"), "crypt_method": (32, ">I"), "l1_size": (36, ">I"),
    "l1_offset": (40, ">Q"), "reftable_offset": (48, ">Q"), "reftable_clusters": (56, ">I"),
    "snapshots": (60, ">I"), "snapshots_offset": (64, ">Q"), "incompatible": (72, ">Q"),
    "compatible": (80, ">Q"), "autoclear": (88, ">Q"), "refcount_order": (96, ">I"),
    "header_length": (100, ">I"), "compression_type": (104, ">B"),
}
OFFSET_MASK = 0x00FFFFFFFFFFFE00
COPIED = 1 << 63
COMPRESSED = 1 << 62

EXT_BACKING_FORMAT = 0xE2792ACA
EXT_FEATURE_TABLE = 0x6803F857
EXT_CRYPTO = 0x0537BE77
EXT_DATA_FILE = 0x44415441


class Qcow2File:
    """A qcow2 file in memory; save() writes it."""

    def __init__(self, path):
        with open(path, "rb") as file:
            self.data = bytearray(file.read())

    def save(self, path):
        with open(path, "wb") as file:
            file.write(self.data)
        return path

    def get(self, field):
        at, layout = FIELDS[field]
        return struct.unpack_from(layout, self.data, at)[0]

    def set(self, field, value):
        at, layout = FIELDS[field]
        struct.pack_into(layout, self.data, at, value)
        return self

    def u64(self, at):
        return struct.unpack_from(">Q", self.data, at)[0]

    def set_u64(self, at, value):
        struct.pack_into(">Q", self.data, at, value)
        return self

    @property
    def cluster_size(self):
        return 1 << self.get("cluster_bits")

    @property
    def l2_entry_size(self):
        return 16 if self.get("version") >= 3 and self.get("incompatible") & 16 else 8

    def l1_entry_at(self, guest):
        """File offset of the L1 entry for a guest offset."""
        return self.get("l1_offset") + guest // self.cluster_size // (self.cluster_size // self.l2_entry_size) * 8

    def l2_entry_at(self, guest):
        table = self.u64(self.l1_entry_at(guest)) & OFFSET_MASK
        return table + guest // self.cluster_size % (self.cluster_size // self.l2_entry_size) * self.l2_entry_size

    def reftable_at(self):
        return self.get("reftable_offset")

    def extensions(self):
        """Yields (file offset, type, length) of the header's extensions."""
        at = self.get("header_length") if self.get("version") >= 3 else 72
        while True:
            kind, length = struct.unpack_from(">II", self.data, at)
            if kind == 0:
                return
            yield at, kind, length
            at += 8 + (length + 7) // 8 * 8

    def extension(self, wanted):
        """File offset of an extension."""
        return next(at for at, kind, _ in self.extensions() if kind == wanted)

    def crypto(self):
        """Where the LUKS header and its key material are: file offset, bytes."""
        at = self.extension(EXT_CRYPTO)
        return self.u64(at + 8), self.u64(at + 16)
