# SPDX-License-Identifier: BSD-3-Clause
"""A client that speaks NBD by hand, for what libraries refuse to send.

Every step is its own call and nothing is checked beyond what the call needs, so that a test can
send half a message, a wrong length or a hundred requests without reading a reply.  Names follow the
protocol text.
"""
import socket
import ssl
import struct

NBDMAGIC = 0x4E42444D41474943
IHAVEOPT = 0x49484156454F5054
OLDSTYLE_MAGIC = 0x00420281861253
REPLY_MAGIC = 0x0003E889045565A9
REQUEST_MAGIC = 0x25609513
SIMPLE_REPLY_MAGIC = 0x67446698
STRUCTURED_REPLY_MAGIC = 0x668E33EF
EXTENDED_REQUEST_MAGIC = 0x21E41C71
EXTENDED_REPLY_MAGIC = 0x6E8A278C

FLAG_C_FIXED_NEWSTYLE = 1
FLAG_C_NO_ZEROES = 2

OPT_EXPORT_NAME, OPT_ABORT, OPT_LIST, OPT_STARTTLS, OPT_INFO, OPT_GO = 1, 2, 3, 5, 6, 7
OPT_STRUCTURED_REPLY, OPT_LIST_META, OPT_SET_META, OPT_EXTENDED_HEADERS = 8, 9, 10, 11
REP_ACK, REP_SERVER, REP_INFO, REP_META = 1, 2, 3, 4
ERR = 1 << 31
REP_ERR_UNSUP, REP_ERR_POLICY, REP_ERR_INVALID = ERR + 1, ERR + 2, ERR + 3
REP_ERR_TLS_REQD, REP_ERR_UNKNOWN, REP_ERR_SHUTDOWN = ERR + 5, ERR + 6, ERR + 7
REP_ERR_TOO_BIG, REP_ERR_EXT_HEADER_REQD = ERR + 9, ERR + 10
INFO_EXPORT, INFO_NAME, INFO_DESCRIPTION, INFO_BLOCK_SIZE = 0, 1, 2, 3

CMD_READ, CMD_WRITE, CMD_DISC, CMD_FLUSH, CMD_TRIM, CMD_CACHE, CMD_WRITE_ZEROES = range(7)
CMD_BLOCK_STATUS = 7
CMD_FLAG_FUA, CMD_FLAG_NO_HOLE, CMD_FLAG_DF, CMD_FLAG_REQ_ONE = 1, 2, 4, 8
CMD_FLAG_FAST_ZERO, CMD_FLAG_PAYLOAD_LEN = 16, 32

CHUNK_DONE = 1
CHUNK_NONE, CHUNK_DATA, CHUNK_HOLE, CHUNK_STATUS, CHUNK_STATUS_EXT = 0, 1, 2, 5, 6
CHUNK_ERROR, CHUNK_ERROR_OFFSET = 0x8001, 0x8002

FLAG_READ_ONLY = 1 << 1
EPERM, EIO, EINVAL, ENOSPC, EOVERFLOW, ENOTSUP, ESHUTDOWN = 1, 5, 22, 28, 75, 95, 108

TIMEOUT = 60  # seconds until a read that should have been answered counts as a hang


class Closed(Exception):
    """The server closed or reset the connection."""


class Export:
    """What a server tells about an export when transmission begins."""

    def __init__(self, size, flags):
        self.size, self.flags = size, flags
        self.name = self.description = self.block_sizes = None


def request_bytes(command, offset, length, flags=0, cookie=0, magic=REQUEST_MAGIC):
    return struct.pack(">IHHQQI", magic, flags, command, cookie, offset, length)


def extended_request_bytes(command, offset, length, flags=0, cookie=0, magic=EXTENDED_REQUEST_MAGIC):
    return struct.pack(">IHHQQQ", magic, flags, command, cookie, offset, length)


def option_bytes(option, data=b"", length=None, magic=IHAVEOPT):
    return struct.pack(">QII", magic, option, len(data) if length is None else length) + data


def go_data(name=b"", infos=()):
    data = struct.pack(">I", len(name)) + name + struct.pack(">H", len(infos))
    return data + b"".join(struct.pack(">H", info) for info in infos)


def meta_data(name=b"", queries=()):
    """The data of LIST_META_CONTEXT and SET_META_CONTEXT."""
    data = struct.pack(">I", len(name)) + name + struct.pack(">I", len(queries))
    return data + b"".join(struct.pack(">I", len(query)) + query for query in queries)


class Answer:
    """All that came to one request, in any mode."""

    def __init__(self, cookie):
        self.cookie = cookie
        self.error = 0            # the first one
        self.text = self.error_offset = None
        self.types = []           # of the chunks
        self.data = []            # (offset, bytes); of a simple reply the offset is that of the request
        self.holes = []           # (offset, length)
        self.status = {}          # {context id: [(length, flags)]}

    def content(self, offset, length):
        """What a READ has told of this range; it must have told each byte once."""
        content, seen = bytearray(length), 0
        for at, data in self.data:
            assert offset <= at and at + len(data) <= offset + length, "data outside of the request"
            content[at - offset:at - offset + len(data)] = data
            seen += len(data)
        for at, hole in self.holes:
            assert offset <= at and at + hole <= offset + length, "a hole outside of the request"
            seen += hole
        assert seen == length, f"{seen} bytes came for a READ of {length}"
        return bytes(content)

    def take(self, kind, payload):
        """A chunk's payload."""
        self.types.append(kind)
        if kind == CHUNK_DATA:
            self.data.append((struct.unpack(">Q", payload[:8])[0], payload[8:]))
        elif kind == CHUNK_HOLE:
            self.holes.append(struct.unpack(">QI", payload))
        elif kind == CHUNK_STATUS:
            self.status[struct.unpack(">I", payload[:4])[0]] = list(
                struct.iter_unpack(">II", payload[4:]))
        elif kind == CHUNK_STATUS_EXT:
            context, count = struct.unpack(">II", payload[:8])
            self.status[context] = list(struct.iter_unpack(">QQ", payload[8:]))
            assert len(self.status[context]) == count, "the number of extents is wrong"
        elif kind & 0x8000:
            error, length = struct.unpack(">IH", payload[:6])
            self.error = self.error or error
            self.text = payload[6:6 + length].decode()
            rest = payload[6 + length:]
            if kind == CHUNK_ERROR_OFFSET:
                self.error_offset, = struct.unpack(">Q", rest)
            else:
                assert rest == b"", "bytes behind the text of an error"
        else:
            assert kind == CHUNK_NONE and not payload, f"a chunk of type {kind}"


class RawClient:
    """
    `where` is the path of a Unix socket or a (host, port) pair; with the ssl.SSLContext `tls`,
    connect() begins with STARTTLS.
    """
    tls = None  # also of one that a test has given a socket of its own

    def __init__(self, where, tls=None):
        self.tls = tls
        if isinstance(where, tuple):
            self.sock = socket.create_connection(where, timeout=TIMEOUT)
        else:
            self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.sock.settimeout(TIMEOUT)
            self.sock.connect(where)
        self.export = None
        self.cookie = 0
        self.mode = "simple"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.sock.close()

    def reset(self):
        """Closes with a reset instead of an orderly end (TCP)."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def send(self, data):
        try:
            self.sock.sendall(data)
        except (BrokenPipeError, ConnectionResetError, ssl.SSLError) as problem:
            raise Closed(str(problem)) from problem

    def recv(self, length):
        """Exactly `length` bytes."""
        parts = []
        while length:
            try:
                part = self.sock.recv(min(length, 1 << 20))
            except (ConnectionResetError, ssl.SSLError) as problem:
                raise Closed(str(problem)) from problem
            if not part:
                raise Closed("end of the connection")
            parts.append(part)
            length -= len(part)
        return b"".join(parts)

    def recv_until_closed(self):
        """Everything up to the end of the connection, which must come."""
        parts = []
        while True:
            try:
                part = self.sock.recv(1 << 20)
            except (ConnectionResetError, ssl.SSLError):
                part = b""
            if not part:
                return b"".join(parts)
            parts.append(part)

    # Handshake.

    def greeting(self):
        """Reads the newstyle greeting; returns the server's handshake flags."""
        magic, option_magic, flags = struct.unpack(">QQH", self.recv(18))
        assert magic == NBDMAGIC, hex(magic)
        assert option_magic == IHAVEOPT, hex(option_magic)
        return flags

    def client_flags(self, flags=FLAG_C_FIXED_NEWSTYLE | FLAG_C_NO_ZEROES):
        self.send(struct.pack(">I", flags))

    def starttls(self, context):
        """STARTTLS, and what follows is inside of TLS."""
        replies = self.option(OPT_STARTTLS)
        assert replies == [(REP_ACK, b"")], f"STARTTLS was refused: {replies}"
        self.wrap(context)

    def wrap(self, context):
        try:
            self.sock = context.wrap_socket(self.sock)
        except (ConnectionResetError, BrokenPipeError, ssl.SSLError) as problem:
            raise Closed(str(problem)) from problem

    def option_reply(self):
        """One reply to an option: (option, reply type, data)."""
        magic, option, kind, length = struct.unpack(">QIII", self.recv(20))
        assert magic == REPLY_MAGIC, hex(magic)
        return option, kind, self.recv(length)

    def option(self, option, data=b""):
        """Sends an option and returns its replies as (type, data), up to the one that ends it."""
        self.send(option_bytes(option, data))
        replies = []
        while True:
            got, kind, reply = self.option_reply()
            assert got == option, f"a reply to option {got} instead of {option}"
            replies.append((kind, reply))
            if kind == REP_ACK or kind & ERR:
                return replies

    def go(self, name=b"", infos=(INFO_NAME, INFO_DESCRIPTION, INFO_BLOCK_SIZE), option=OPT_GO):
        """Enters transmission; returns the Export. Raises AssertionError when it is refused."""
        replies = self.option(option, go_data(name, infos))
        assert replies[-1][0] == REP_ACK, f"GO was refused: {replies[-1]}"
        export = None
        late = {}
        for kind, data in replies[:-1]:
            assert kind == REP_INFO, hex(kind)
            info, = struct.unpack(">H", data[:2])
            if info == INFO_EXPORT:
                export = Export(*struct.unpack(">QH", data[2:]))
            elif info == INFO_NAME:
                late["name"] = data[2:]
            elif info == INFO_DESCRIPTION:
                late["description"] = data[2:]
            elif info == INFO_BLOCK_SIZE:
                late["block_sizes"] = struct.unpack(">III", data[2:])
        assert export, "no NBD_INFO_EXPORT came with GO"
        vars(export).update(late)
        self.export = export
        return export

    def negotiate(self, mode):
        """Replies as of the mode "simple", "structured" or "extended"."""
        option = {"structured": OPT_STRUCTURED_REPLY, "extended": OPT_EXTENDED_HEADERS}.get(mode)
        if option:
            replies = self.option(option)
            assert replies == [(REP_ACK, b"")], f"{mode} replies were refused: {replies}"
        self.mode = mode

    def contexts(self, name, queries, option=OPT_SET_META):
        """{name: id} of the metadata contexts that the server acknowledges."""
        replies = self.option(option, meta_data(name, queries))
        assert replies[-1][0] == REP_ACK, f"contexts were refused: {replies[-1]}"
        assert all(kind == REP_META for kind, _ in replies[:-1]), replies
        return {data[4:]: struct.unpack(">I", data[:4])[0] for _, data in replies[:-1]}

    def connect(self, name=b"", mode="simple", contexts=()):
        """The whole handshake; returns self."""
        self.greeting()
        self.client_flags()
        if self.tls:
            self.starttls(self.tls)
        self.negotiate(mode)
        if contexts:
            self.contexts(name, contexts)
        self.go(name)
        return self

    # Transmission.

    def start(self, command, offset=0, length=0, flags=0, payload=b""):
        """Sends a request without waiting for its reply; returns the cookie."""
        self.cookie += 1
        self.send(self.request(command, offset, length, flags, self.cookie) + payload)
        return self.cookie

    def request(self, command, offset=0, length=0, flags=0, cookie=0):
        """A request's header as the mode has it."""
        if self.mode == "extended":
            return extended_request_bytes(command, offset, length, flags, cookie)
        return request_bytes(command, offset, length, flags, cookie)

    def chunk(self):
        """
        A structured or extended reply chunk: (cookie, flags, type, payload).  A simple reply, which is
        allowed to all but READ without extended headers, is given as the chunk that stands for it.
        """
        if self.mode == "structured":
            start = self.recv(16)
            if start[:4] == struct.pack(">I", SIMPLE_REPLY_MAGIC):
                _, error, cookie = struct.unpack(">IIQ", start)
                kind, payload = (CHUNK_ERROR, struct.pack(">IH", error, 0)) if error else (CHUNK_NONE, b"")
                return cookie, CHUNK_DONE, kind, payload
            magic, flags, kind, cookie, length = struct.unpack(">IHHQI", start + self.recv(4))
            assert magic == STRUCTURED_REPLY_MAGIC, hex(magic)
        else:
            magic, flags, kind, cookie, _, length = struct.unpack(">IHHQQQ", self.recv(32))
            assert magic == EXTENDED_REPLY_MAGIC, hex(magic)
        return cookie, flags, kind, self.recv(length)

    def answers(self, requests):
        """
        What comes to requests in flight: {cookie: Answer}, as it comes.  `requests` is {cookie: (offset,
        length)} with the range of each READ and None for what is answered without data.
        """
        open_ones = {cookie: Answer(cookie) for cookie in requests}
        done = {}
        while open_ones:
            if self.mode == "simple":
                cookie, error = self.reply_header()
                answer, last = open_ones[cookie], True
                answer.error = error
                if requests[cookie] and not error:
                    answer.data.append((requests[cookie][0], self.recv(requests[cookie][1])))
            else:
                cookie, flags, kind, payload = self.chunk()
                assert cookie in open_ones, f"a chunk with the cookie {cookie}"
                answer, last = open_ones[cookie], flags & CHUNK_DONE
                answer.take(kind, payload)
            if last:
                done[cookie] = open_ones.pop(cookie)
        return done

    def ask(self, command, offset=0, length=0, flags=0, payload=b""):
        """One request and all that comes to it: its Answer, in any mode."""
        if self.mode == "extended" and command == CMD_WRITE:
            flags |= CMD_FLAG_PAYLOAD_LEN
        cookie = self.start(command, offset, length, flags, payload)
        return self.answers({cookie: (offset, length) if command == CMD_READ else None})[cookie]

    def reply_header(self):
        """The header of a simple reply: (cookie, error)."""
        magic, error, cookie = struct.unpack(">IIQ", self.recv(16))
        assert magic == SIMPLE_REPLY_MAGIC, hex(magic)
        return cookie, error

    def finish(self, cookie):
        """Waits for the reply, which must be the next one, to a request without data; its error."""
        got, error = self.reply_header()
        assert got == cookie, f"cookie {got} came back instead of {cookie}"
        return error

    def command(self, command, offset=0, length=0, flags=0, payload=b""):
        """A request that is answered without data; returns the error."""
        return self.finish(self.start(command, offset, length, flags, payload))

    def read_error(self, offset, length):
        """(error, data) of a READ."""
        cookie = self.start(CMD_READ, offset, length)
        error = self.finish(cookie)
        return error, b"" if error else self.recv(length)

    def read(self, offset, length):
        error, data = self.read_error(offset, length)
        assert error == 0, f"READ of {length} at {offset}: error {error}"
        return data

    def write(self, offset, data, flags=0):
        error = self.command(CMD_WRITE, offset, len(data), flags, data)
        assert error == 0, f"WRITE of {len(data)} at {offset}: error {error}"

    def read_all(self, piece=1 << 20):
        """The whole export."""
        size = self.export.size
        return b"".join(self.read(at, min(piece, size - at)) for at in range(0, size, piece))

    def flush(self):
        error = self.command(CMD_FLUSH)
        assert error == 0, f"FLUSH: error {error}"

    def disconnect(self):
        """DISC, and waits for the server's end."""
        self.start(CMD_DISC)
        rest = self.recv_until_closed()
        assert rest == b"", f"{len(rest)} bytes came after DISC"
        self.close()
