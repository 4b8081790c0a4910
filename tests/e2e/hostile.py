# SPDX-License-Identifier: BSD-3-Clause
"""The table of hostile inputs and what its rows stand on.

A row is a function that does something bad to servers of its Stage and checks what it is due.
Whatever it was, in the end each server still runs, serves a good client, and has closed what it had
opened for the others.
"""
import time

from evnbd_test import KIB, MIB, SANITIZED, check, content, equal, free_port, same_bytes, wait_for
from nbd_raw import (CMD_CACHE, CMD_FLUSH, ERR, OPT_LIST, REP_ACK, Closed)

SIZE = 4 * MIB
DATA = content(1, SIZE)
MODES = ("simple", "structured", "extended")
HEAD = 64 * KIB           # as much of the export is read by a good client
SPARE_DESCRIPTORS = 4     # what an engine may open when it is first needed

ROWS = {}


def row(number, title):
    """Enters the function into the table."""
    def enter(function):
        assert number not in ROWS, number
        ROWS[number] = title, function
        return function
    return enter


class Stage:
    """The servers and clients of one row."""

    def __init__(self, t):
        self.t = t
        self.servers = []   # [server, what a good client reads first, descriptors]
        self.clients = []

    def serve(self, *options, image=None, image_format="raw", head=None, tcp=False, **keywords):
        """A server of DATA, or of an image that begins with `head`."""
        if tcp:
            keywords.update(host="127.0.0.1", port=free_port())
        if image is None:
            image, head = self.t.file(f"disk{self.t.number()}", DATA), DATA[:HEAD]
        server = self.t.serve(image, "-f", image_format, "-e", "0", *options, **keywords)
        with server.client() as client:
            # Starts what is started when it is first needed.
            client.command(CMD_FLUSH)
            client.command(CMD_CACHE, 0, min(HEAD, client.export.size))
            client.disconnect()
        self.servers.append([server, head, server.descriptors()])
        return server

    def client(self, server, mode=None, contexts=()):
        """A client in transmission; without a mode, one that has just connected."""
        client = server.client(connect=mode is not None, mode=mode or "simple", contexts=contexts)
        self.clients.append(client)
        return client

    def haggler(self, server, mode="simple"):
        """A client that has sent its flags and can send options."""
        client = self.client(server)
        client.greeting()
        client.client_flags()
        client.negotiate(mode)
        return client

    def expect_head(self, server, head):
        """What a good client reads has become this."""
        next(entry for entry in self.servers if entry[0] is server)[1] = head

    def finish(self):
        for client in self.clients:
            client.close()
        for server, head, descriptors in self.servers:
            equal(server.process.poll(), None, "exit status of the server")
            check_good_client(server, head)
            limit = descriptors + SPARE_DESCRIPTORS
            wait_for(lambda s=server, n=limit: s.descriptors() <= n,
                     f"descriptors to become {limit} or fewer")


def check_good_client(server, head):
    with server.client() as client:
        if head:
            same_bytes(client.read(0, len(head)), head, "the export, for a good client")
        else:
            client.read(0, min(HEAD, client.export.size))
        client.disconnect()


def expect_closed(client, at_most=0):
    """The server closes; before that it may have said `at_most` bytes."""
    rest = client.recv_until_closed()
    check(len(rest) <= at_most, f"{len(rest)} bytes came before the end: {rest[:100]!r}")


def expect_refused(client, option, data, *kinds):
    """The option is refused with one of these errors, and the connection goes on, in step."""
    replies = client.option(option, data)
    check(len(replies) == 1 and replies[0][0] in kinds,
          f"replies to option {option} with {data[:40]!r}: {replies}")
    check_text(replies[0][1])
    expect_usable(client)
    return replies[0][1]


def check_text(text):
    """Text for users: not empty, not long, nothing in it that a terminal would obey."""
    check(0 < len(text) <= 512, f"the text of an error has {len(text)} bytes")
    check(all(32 <= byte < 127 for byte in text), f"the text of an error is {text!r}")


def expect_usable(client):
    replies = client.option(OPT_LIST)
    equal(replies[-1][0], REP_ACK, "reply to LIST")
    check(not any(kind & ERR for kind, _ in replies), f"replies to LIST: {replies}")


def expect_error(client, wanted, command, offset=0, length=0, flags=0, payload=b""):
    """The request fails with one of `wanted`, with text where there is room for it."""
    answer = client.ask(command, offset, length, flags, payload)
    check(answer.error in wanted, f"error {answer.error} instead of {wanted} for command {command} at "
          f"{offset}, {length} bytes, flags {flags:#x}, {client.mode} replies")
    if answer.error and client.mode != "simple":
        check_text(answer.text.encode())
    check(not any(data for _, data in answer.data), "data of a request that should have failed")
    return answer


def send_until_closed(client, data, pause):
    """A byte now and then, until the server closes. Returns the bytes that were sent."""
    for number, byte in enumerate(data):
        try:
            client.send(bytes([byte]))
        except Closed:
            return number
        time.sleep(pause)
    return len(data)


def resident_kib(server):
    return server.status_field("VmRSS")


def check_memory(server, limit_mib):
    """The most that the server ever took; sanitizers keep more than is used."""
    if not SANITIZED:
        used = server.status_field("VmHWM") // KIB
        check(used <= limit_mib, f"the server took {used} MiB, more than {limit_mib}")
