#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""TLS by objects, as qemu-nbd's users know it, and who is let in by the name that TLS has proved."""
import json
import os

from evnbd_test import (EVNBD, MIB, cases, check, content, equal, main, qemu_img, refused, run, skip,
                        wait_for, write_file)
from tls_pki import KEY, Pki, encrypt_key, psk_file

DATA = content(4, MIB)
NAME = "test client"


def disk(t):
    if "without GnuTLS" in run(EVNBD, "--tls-psk=/nowhere", "/nowhere/image", status=None).stderr:
        skip("evnbd was built without TLS")
    return t.file("disk", DATA)


def x509(folder, *more):
    return "--object=" + ",".join(["tls-creds-x509,id=tls0,endpoint=server", f"dir={folder}", *more])


def serve(t, *options):
    return t.serve(disk(t), "-f", "raw", "-e", "0", "--tls-creds=tls0", *options)


def qemu_info(server, creds, status=0):
    """qemu-img as the client, with the credentials of this object."""
    creds = creds and ["--object", f"{creds},id=tls0,endpoint=client"]
    with_tls = ",tls-creds=tls0,tls-hostname=localhost" if creds and "x509" in creds[1] else \
        ",tls-creds=tls0" if creds else ""
    return qemu_img("info", *creds, "--image-opts", f"driver=nbd,path={server.unix}{with_tls}", status=status)


def gets_in(server, creds):
    check("1 MiB" in qemu_info(server, creds).stdout, "qemu-img does not tell the size")


def stays_out(server, creds, says="", logged=None):
    done = qemu_info(server, creds, status=1)
    check(says in done.stderr, done.stderr)
    if logged:
        wait_for(lambda: logged in server.log, f"'{logged}' in the log")


def client(pki, **options):
    return f"tls-creds-x509,dir={pki.folder('client', **options)}"


# ---- Credentials ----

def test_certificates(t):
    pki = Pki(t)
    server = serve(t, x509(pki.folder()))
    gets_in(server, client(pki))
    stays_out(server, "", "TLS")
    folder = pki.folder("client")
    os.remove(os.path.join(folder, "client-cert.pem"))
    os.remove(os.path.join(folder, "client-key.pem"))
    stays_out(server, f"tls-creds-x509,dir={folder}")


def test_certificates_of_the_server_only(t):
    pki = Pki(t)
    server = serve(t, x509(pki.folder(), "verify-peer=off"))
    folder = pki.folder("client")
    os.remove(os.path.join(folder, "client-cert.pem"))
    os.remove(os.path.join(folder, "client-key.pem"))
    gets_in(server, f"tls-creds-x509,dir={folder}")


def test_clients_may_choose(t):
    pki = Pki(t)
    server = serve(t, x509(pki.folder()), "--tls=on")
    gets_in(server, "")
    gets_in(server, client(pki))


def test_encrypted_private_key(t):
    pki = Pki(t)
    folder = pki.folder()
    encrypt_key(os.path.join(folder, "server-key.pem"), "open sesame")
    options = [x509(folder, "passwordid=sec0"), "--object=secret,id=sec0,data=open sesame"]
    gets_in(serve(t, *options), client(pki))
    t.stop_servers()
    refused(t, disk(t), "-f", "raw", "--tls-creds=tls0", options[0], "--object=secret,id=sec0,data=x",
            says=["Object 'tls0': ", "private key"])
    refused(t, disk(t), "-f", "raw", "--tls-creds=tls0", options[0],
            says=["Object 'tls0': No secret with id 'sec0'"])


def test_json(t):
    pki = Pki(t)
    words = json.dumps({"qom-type": "tls-creds-x509", "id": "tls0", "endpoint": "server",
                        "dir": pki.folder(), "verify-peer": True})
    gets_in(serve(t, f"--object={words}"), client(pki))


def test_keys(t):
    keys = os.path.dirname(psk_file(t, alice=KEY))
    server = serve(t, f"--object=tls-creds-psk,id=tls0,endpoint=server,dir={keys}")
    gets_in(server, f"tls-creds-psk,dir={keys},username=alice")
    stays_out(server, f"tls-creds-psk,dir={os.path.dirname(psk_file(t, alice=KEY[::-1]))},username=alice")
    stays_out(server, "", "TLS")


def test_anonymous(t):
    server = serve(t, "--object=tls-creds-anon,id=tls0,endpoint=server")
    gets_in(server, "tls-creds-anon")
    stays_out(server, "", "TLS")


def test_priority(t):
    pki = Pki(t)
    server = serve(t, x509(pki.folder(), "priority=NORMAL:-VERS-ALL:+VERS-TLS1.2"), "-v")
    gets_in(server, client(pki))
    wait_for(lambda: "TLS1.2" in server.log, "the version in the log")


def test_order_does_not_matter(t):
    keys = os.path.dirname(psk_file(t, alice=KEY))
    server = t.serve(disk(t), "-f", "raw", "--tls-authz=a", "--tls-creds=c",
                     "--object=authz-simple,id=a,identity=alice",
                     f"--object=tls-creds-psk,id=c,endpoint=server,dir={keys}")
    gets_in(server, f"tls-creds-psk,dir={keys},username=alice")


REFUSED = {
    "no-such-id": (["--tls-creds=none"], "Failed to get TLS creds: No TLS credentials with id 'none'"),
    "not-credentials": (["--object=secret,id=s,data=x", "--tls-creds=s"],
                        "Failed to get TLS creds: Object with id 's' is not TLS credentials"),
    "client": (["--object=tls-creds-anon,id=c,endpoint=client", "--tls-creds=c"],
               "Failed to get TLS creds: Expected TLS credentials for a server endpoint"),
    "default-is-client": (["--object=tls-creds-anon,id=c", "--tls-creds=c"], "for a server endpoint"),
    "no-dir": (["--object=tls-creds-x509,id=c,endpoint=server"], "Object 'c': Missing 'dir' property value"),
    "no-dir-psk": (["--object=tls-creds-psk,id=c,endpoint=server"], "Missing 'dir' property value"),
    "no-such-dir": (["--object=tls-creds-x509,id=c,endpoint=server,dir={dir}/none"],
                    "Object 'c': Unable to access .*{dir}/none/.*: No such file"),
    "no-keys": (["--object=tls-creds-psk,id=c,endpoint=server,dir={dir}"],
                "Unable to access .*{dir}/keys.psk': No such file"),
    "priority": (["--object=tls-creds-anon,id=c,endpoint=server,priority=BOGUS"],
                 "Unable to set TLS session priority 'BOGUS'"),
    "endpoint": (["--object=tls-creds-anon,id=c,endpoint=both"],
                 "Option 'endpoint' of tls-creds-anon must be one of server, client, not 'both'"),
    "no-such-authz": (["--object=tls-creds-anon,id=c,endpoint=server", "--tls-creds=c", "--tls-authz=a"],
                      "No authorization with id 'a'"),
    "not-an-authz": (["--object=tls-creds-anon,id=c,endpoint=server", "--tls-creds=c", "--tls-authz=c"],
                     "Object with id 'c' is not an authorization"),
}


@cases(*REFUSED)
def test_refused(t, name):
    options, says = REFUSED[name]
    refused(t, disk(t), "-f", "raw", *(option.replace("{dir}", t.dir) for option in options),
            says=[says.replace("{dir}", t.dir)])


# ---- Who is let in ----

DENIED = "you are not among the clients that may use export ''"


def test_authorized_by_name(t):
    pki = Pki(t)
    server = serve(t, x509(pki.folder()), "--tls-authz=a", f"--object=authz-simple,id=a,identity=CN={NAME}")
    gets_in(server, client(pki))
    stays_out(server, client(pki, name="somebody"), DENIED,
              "may not use export '': no rule allows it (uid ")
    check("certificate 'CN=somebody')" in server.log, server.log)


def test_authorized_by_list(t):
    pki = Pki(t)
    server = serve(t, x509(pki.folder()), "--tls-authz=a",
                   "--object=authz-list,id=a,rules.0.match=CN=*x,rules.0.policy=deny,rules.0.format=glob,"
                   "rules.1.match=CN=a*,rules.1.policy=allow,rules.1.format=glob")
    gets_in(server, client(pki, name="ab"))
    stays_out(server, client(pki, name="ax"), DENIED)
    stays_out(server, client(pki, name="b"), DENIED)


def write_list(path, *names):
    """As editors and configuration tools do: a new file in the place of the old one."""
    rules = [{"match": name, "policy": "allow"} for name in names]
    write_file(path + ".new", json.dumps({"rules": rules}).encode())
    os.rename(path + ".new", path)


def test_authorized_by_a_file_that_changes(t):
    keys = os.path.dirname(psk_file(t, alice=KEY, bob=KEY))
    alice, bob = (f"tls-creds-psk,dir={keys},username={name}" for name in ("alice", "bob"))
    path = t.path("list")
    write_list(path, "alice")
    server = serve(t, f"--object=tls-creds-psk,id=tls0,endpoint=server,dir={keys}", "--tls-authz=a",
                   f"--object=authz-list-file,id=a,filename={path}")
    gets_in(server, alice)
    stays_out(server, bob, DENIED)
    write_list(path, "bob")
    gets_in(server, bob)
    stays_out(server, alice, DENIED)
    write_file(path, b"{")
    gets_in(server, bob)
    stays_out(server, alice, DENIED)
    equal(server.log.count("the rules stay what they were"), 1, "times that the bad file is told")
    os.remove(path)
    gets_in(server, bob)
    gets_in(server, bob)
    equal(server.log.count("the rules stay what they were"), 2, "times that trouble is told")
    write_list(path, "alice", "bob")
    gets_in(server, alice)


def test_a_file_that_is_read_once(t):
    keys = os.path.dirname(psk_file(t, alice=KEY))
    write_list(t.path("list"), "alice")
    server = serve(t, f"--object=tls-creds-psk,id=tls0,endpoint=server,dir={keys}", "--tls-authz=a",
                   f"--object=authz-list-file,id=a,filename={t.path('list')},refresh=off")
    write_list(t.path("list"), "bob")
    gets_in(server, f"tls-creds-psk,dir={keys},username=alice")


def test_authorized_by_pam(t):
    """The service of the name that no other has: on Debian everybody who has an account."""
    try:
        with open("/etc/pam.d/other", encoding="utf-8") as file:
            known = "common-account" in file.read() and os.access("/etc/shadow", os.R_OK)
    except OSError:
        known = False
    if not known:
        skip("PAM's service 'other' is not Debian's, or cannot be asked by this user")
    keys = os.path.dirname(psk_file(t, **{"root": KEY, "evnbd-no-such-user": KEY}))
    root, nobody = (f"tls-creds-psk,dir={keys},username={name}" for name in ("root", "evnbd-no-such-user"))
    server = serve(t, f"--object=tls-creds-psk,id=tls0,endpoint=server,dir={keys}", "--tls-authz=a",
                   "--object=authz-pam,id=a,service=evnbd-no-such-service")
    gets_in(server, root)
    stays_out(server, nobody, DENIED)


def test_nobody_is_authorized_without_a_name(t):
    server = serve(t, "--object=tls-creds-anon,id=tls0,endpoint=server", "--tls-authz=a",
                   "--object=authz-list,id=a,policy=allow")
    stays_out(server, "tls-creds-anon", DENIED, "no TLS identity")


def test_plain_clients_are_not_authorized(t):
    keys = os.path.dirname(psk_file(t, alice=KEY))
    server = serve(t, f"--object=tls-creds-psk,id=tls0,endpoint=server,dir={keys}", "--tls=on",
                   "--tls-authz=a", "--object=authz-list,id=a,policy=allow")
    gets_in(server, f"tls-creds-psk,dir={keys},username=alice")
    stays_out(server, "", DENIED)


@cases((f"dn=CN={NAME}", True), ("dn=CN=test", False), ("san=DNS:Client.Example", True),
       ("san=EMAIL:someone@example.com", True), ("san=DNS:example", False), ("psk=" + NAME, False),
       (f"uid={os.getuid()},san=DNS:client.example", True),
       (f"uid={os.getuid() + 1},san=DNS:client.example", False))
def test_rules_about_certificates(t, rule, allowed):
    pki = Pki(t)
    server = serve(t, x509(pki.folder()), f"--allow={rule}")
    creds = client(pki, lines=("tls_www_client", "signing_key", 'dns_name = "client.example"',
                               'email = "someone@example.com"'))
    if allowed:
        gets_in(server, creds)
    else:
        stays_out(server, creds, DENIED)


def test_rules_about_keys(t):
    keys = os.path.dirname(psk_file(t, alice=KEY, bob=KEY, eve=KEY))
    server = serve(t, f"--object=tls-creds-psk,id=tls0,endpoint=server,dir={keys}", "--allow=psk=alice",
                   "--allow=psk=bob")
    gets_in(server, f"tls-creds-psk,dir={keys},username=alice")
    gets_in(server, f"tls-creds-psk,dir={keys},username=bob")
    stays_out(server, f"tls-creds-psk,dir={keys},username=eve", DENIED, "pre-shared key 'eve'")


if __name__ == "__main__":
    main()
