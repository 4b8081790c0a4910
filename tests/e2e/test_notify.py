#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""What a service manager is told: sd_notify(3) and sd_watchdog(3), with a manager's socket of our own."""
import os
import re
import signal
import socket
import sys

from evnbd_test import EVNBD, HANG, MIB, cases, check, content, equal, main, refused, run

DATA = content(1, MIB)
# The watchdog of the process that is started in its place.
WATCHED = "import os, sys; os.environ['WATCHDOG_PID'] = str(os.getpid() + int(sys.argv[1])); " \
          "os.execvp(sys.argv[2], sys.argv[2:])"


class Manager:
    """The socket of a service manager, at a path or at an abstract name."""

    def __init__(self, t, abstract=False):
        path = t.path("notify")
        self.name = "@" + path if abstract else path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + path if abstract else path)
        self.socket.settimeout(HANG)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def environment(self, **more):
        return {**os.environ, "NOTIFY_SOCKET": self.name, **more}

    def message(self):
        """The next datagram as a dictionary."""
        return dict(line.split("=", 1) for line in self.socket.recv(4096).decode().split("\n"))

    def until(self, field):
        """The first message that has the field."""
        while field not in (message := self.message()):
            pass
        return message

    def silent(self):
        self.socket.setblocking(False)
        try:
            return not self.socket.recv(4096)
        except BlockingIOError:
            return True
        finally:
            self.socket.settimeout(HANG)


@cases(False, True)
def test_ready_and_stopping(t, abstract):
    image = t.file("disk.img", DATA)
    with Manager(t, abstract) as manager:
        server = t.serve(image, "-f", "raw", env=manager.environment())
        ready = manager.message()
        equal(ready, {"READY": "1", "MAINPID": str(server.process.pid), "STATUS": f"Serving '{image}'"},
              "first message")
        server.client().close()  # it listens
        server.stop()
        equal(manager.until("STOPPING")["STOPPING"], "1", "at the end")
        check(manager.silent(), "nothing after that")


def test_the_status_counts_clients(t):
    image = t.file("disk.img", DATA)
    with Manager(t) as manager:
        server = t.serve(image, "-f", "raw", "-e", "0", env=manager.environment())
        manager.until("READY")
        with server.client():
            equal(manager.message(), {"STATUS": f"Serving '{image}' to 1 client"}, "with a client")
            with server.client():
                equal(manager.message(), {"STATUS": f"Serving '{image}' to 2 clients"}, "with two")
        equal(manager.message(), {"STATUS": f"Serving '{image}' to 0 clients"}, "without")


def test_the_process_behind_fork_is_named(t):
    with Manager(t) as manager:
        done = run(EVNBD, "-t", "--fork", "-f", "raw", "-k", t.path("socket"), "--pid-file", t.path("pid"),
                   t.file("disk.img", DATA), env=manager.environment())
        equal(done.returncode, 0, "exit status")
        with open(t.path("pid"), encoding="ascii") as file:
            pid = file.read().strip()
        try:
            equal(manager.until("READY")["MAINPID"], pid, "the process to watch")
        finally:
            os.kill(int(pid), signal.SIGTERM)
        manager.until("STOPPING")


def test_a_failed_start_says_why(t):
    with Manager(t) as manager:
        refused(t, t.path("missing.img"), "-f", "raw", env=manager.environment())
        message = manager.message()
        equal(list(message), ["STATUS"], "never ready")
        check(re.search("missing.img.*No such file", message["STATUS"]), message)
        check(manager.silent(), "nothing more")


def test_a_name_cannot_add_lines(t):
    image = t.file("disk\nMAINPID=1", DATA)
    with Manager(t) as manager:
        server = t.serve(image, "-f", "raw", env=manager.environment())
        equal(manager.message()["MAINPID"], str(server.process.pid), "the process to watch")


@cases((0, True), (1, False))
def test_watchdog(t, pid_offset, watched):
    with Manager(t) as manager:
        server = t.serve(t.file("disk.img", DATA), "-f", "raw",
                         prefix=[sys.executable, "-c", WATCHED, str(pid_offset)],
                         env=manager.environment(WATCHDOG_USEC="100000"))
        manager.until("READY")
        if watched:
            for _ in range(3):
                equal(manager.message(), {"WATCHDOG": "1"}, "sign of life")
        server.stop()
        alive = []
        while "STOPPING" not in (message := manager.message()):
            alive += message
        check(watched or not alive, f"signs of life of a process that is not watched: {alive}")


@cases(("relative", "NOTIFY_SOCKET is 'relative'"), ("@", "NOTIFY_SOCKET is '@'"), ("", "NOTIFY_SOCKET is ''"),
       ("/" + "x" * 200, "has 201 bytes; a socket's name has at most 107"))
def test_a_bad_name_is_told_and_served_without(t, name, says):
    server = t.serve(t.file("disk.img", DATA), "-f", "raw", env={**os.environ, "NOTIFY_SOCKET": name})
    check(says in server.log, server.log)
    server.client().close()


def test_a_manager_that_does_not_listen_holds_up_nobody(t):
    server = t.serve(t.file("disk.img", DATA), "-f", "raw", env={**os.environ, "NOTIFY_SOCKET": t.path("none")})
    equal(server.log, "", "log")
    server.stop()
    with Manager(t) as manager:  # it never reads: more clients than its socket takes messages
        server = t.serve(t.path("disk.img"), "-f", "raw",
                         env=manager.environment(WATCHDOG_USEC="2000"))
        for _ in range(50):
            server.client().close()
        server.stop()


if __name__ == "__main__":
    main()
