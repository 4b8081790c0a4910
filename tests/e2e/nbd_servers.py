# SPDX-License-Identifier: BSD-3-Clause
"""Other people's NBD servers, for tests of the nbd driver; each at a Unix socket."""
import os
import signal
import subprocess

from evnbd_test import EVNBD, HANG, free_port, need, run, skip, wait_for, write_file


def need_driver(t):
    done = run(EVNBD, "-f", "raw", f"nbd+unix:///?socket={t.path('nowhere')}", status=1)
    if "without libnbd" in done.stderr:
        skip("evnbd was built without libnbd")


class Other:
    """A running server; in case.servers it is stopped with the rest, and may be started again."""

    def __init__(self, case, words, unix, listens=None):
        self.words = [str(word) for word in words]
        self.command, self.unix, self.listens = self.words, unix, listens or self.answers
        self.log_path = case.path(f"other{case.number()}.log")
        self.process = None
        case.servers.append(self)
        self.start()

    def start(self):
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(self.words, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        wait_for(lambda: self.listens() or self.process.poll() is not None, f"{self.words[0]} to listen")
        assert self.process.poll() is None, f"{self.words} ended:\n{self.log}"

    def answers(self):
        """Whether somebody listens; looks without connecting, which could end the server."""
        with open("/proc/net/unix", encoding="ascii", errors="replace") as lines:
            fields = [line.split() for line in lines]
        listening = "00010000"  # among the flags: it is no more only bound
        return any(f[-1] == self.unix and f[3] == listening for f in fields)

    @property
    def uri(self):
        return f"nbd+unix:///?socket={self.unix}"

    @property
    def log(self):
        with open(self.log_path, encoding="utf-8", errors="replace") as log:
            return log.read()

    def pause(self):
        os.kill(self.process.pid, signal.SIGSTOP)

    def resume(self):
        os.kill(self.process.pid, signal.SIGCONT)

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(HANG)
        if os.path.exists(self.unix):
            os.unlink(self.unix)

    stop = kill


def qemu_nbd(t, image, *options, clients=8, form="raw"):
    need("qemu-nbd")
    unix = t.path(f"qemu{t.number()}.sock")
    return Other(t, ["qemu-nbd", "-t", "-e", clients, "-f", form, "-k", unix, *options, image], unix)


def nbdkit(t, *words):
    need("nbdkit")
    unix = t.path(f"nbdkit{t.number()}.sock")
    return Other(t, ["nbdkit", "-f", "-U", unix, *words], unix)


def nbd_server(t, image):
    need("nbd-server")
    unix = t.path(f"server{t.number()}.nbd")
    config = write_file(t.path(f"nbd-server{t.number()}.conf"),
                        f"[generic]\nunixsock = {unix}\nlistenaddr = 127.0.0.1\nport = {free_port()}\n"
                        f"[disk]\nexportname = {image}\n".encode())
    server = Other(t, ["nbd-server", "-d", "-C", config], unix)
    server.export = "disk"
    return server
