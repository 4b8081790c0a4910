#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""--tls-check: what it says about good credentials, and about each defect."""
import os
import re
import shutil
import subprocess

from evnbd_test import (EVNBD, HANG, SANITIZER, cases, check, content, equal, main, need, run, skip,
                        write_file)
from tls_pki import BAD_LISTS, FUTURE, KEY, PAST, RSA, Pki, encrypt_key, psk_file


def look(*options, status):
    """The lines that say ok, and those that say problem."""
    done = subprocess.run([EVNBD, "--tls-check", *options], stdin=subprocess.DEVNULL, capture_output=True,
                          text=True, timeout=HANG, check=False)
    if "without GnuTLS" in done.stdout:
        skip("evnbd was built without TLS")
    check(not SANITIZER.search(done.stderr), done.stderr)
    equal(done.returncode, status, f"exit status ({done.stdout}{done.stderr})")
    lines = done.stdout.splitlines()
    check(all(line.startswith(("ok: ", "problem: ")) for line in lines), done.stdout)
    problems = [line[9:] for line in lines if line.startswith("problem: ")]
    said = re.search(r"problems found: (\d+)", done.stderr)
    equal(int(said[1]) if said else 0, len(problems), "number of problems")
    return [line[4:] for line in lines if line.startswith("ok: ")], problems


def says(lines, *patterns):
    for pattern in patterns:
        check(any(re.search(pattern, line) for line in lines), f"nothing says /{pattern}/: {lines}")


def folder_of(t, defect):
    """A directory of a server's credentials with one defect."""
    pki = Pki(t)
    folder = pki.folder()
    certificate, key, ca, crl = (os.path.join(folder, name) for name in (
        "server-cert.pem", "server-key.pem", "ca-cert.pem", "ca-crl.pem"))
    if defect in ("expired", "not yet valid"):
        return pki.folder(dates=PAST if defect == "expired" else FUTURE)
    if defect == "weak key":
        return pki.folder(key=("--key-type=rsa", "--bits=1024"))
    if defect == "a client's":
        return pki.folder(lines=("tls_www_client", "signing_key"))
    if defect == "a CA's":
        return pki.folder(lines=("ca", "cert_signing_key", "signing_key"))
    if defect == "no signing":
        return pki.folder(lines=("tls_www_server", "encryption_key"), key=RSA)
    if defect == "weak signature":
        pki = Pki(t, "weak", key=RSA)
        folder = pki.folder()
        run("certtool", "--generate-certificate", "--load-privkey", os.path.join(folder, "server-key.pem"),
            "--load-ca-certificate", pki.ca, "--load-ca-privkey", pki.ca_key, "--hash=SHA1", "--outfile",
            os.path.join(folder, "server-cert.pem"), "--template", pki.template(
                ['cn = "localhost"', "tls_www_server", "signing_key", "expiration_days = 100"]))
    elif defect == "another key":
        shutil.copy(os.path.join(pki.folder(), "server-key.pem"), key)
    elif defect == "another CA":
        shutil.copy(Pki(t, "stranger").ca, ca)
    elif defect == "CA expired":
        pki.make_ca("ca", "cert_signing_key", *PAST, out=ca)
    elif defect == "CA is none":
        shutil.copy(certificate, ca)
    elif defect in BAD_LISTS or defect == "old list":
        pki.bad_list(t, defect, folder, certificate)
    elif defect == "revoked":
        pki.revoke(folder, certificate)
    elif defect == "readable by others":
        os.chmod(key, 0o640)
    elif defect == "encrypted":
        encrypt_key(key, "x")
    elif defect.startswith("no "):
        os.remove({"no certificate": certificate, "no key": key, "no CA": ca}[defect])
    elif defect.startswith("garbage in "):
        path = {"certificate": certificate, "key": key, "CA": ca, "CRL": crl}[defect.split()[-1]]
        write_file(path, content(6, 500))
        os.chmod(path, 0o600)
    return folder


DEFECTS = {
    **BAD_LISTS,
    "old list": "the revocation list '.*ca-crl.pem' should have been replaced by a newer one on 2020-02-01",
    "expired": "server-cert.pem': it has expired on 2020-02-01",
    "not yet valid": "server-cert.pem': it is not valid before 2120-01-01",
    "weak key": "the key of the certificate '.*server-cert.pem' is weak: RSA of 1024 bits",
    "weak signature": "the signature of the certificate '.*server-cert.pem' is weak: RSA-SHA1",
    "a client's": "server-cert.pem': its purpose does not allow a TLS server",
    "a CA's": "server-cert.pem': its basic constraints make it one of a CA",
    "no signing": "server-cert.pem': its key usage does not permit digital signatures",
    "another key": "The private key '.*server-key.pem' does not belong to the certificate",
    "another CA": "server-cert.pem' with the CA certificate '.*ca-cert.pem': .*issuer",
    "CA expired": "the CA certificate '.*ca-cert.pem': it has expired",
    "CA is none": "ca-cert.pem': its basic constraints do not make it one of a CA",
    "revoked": "server-cert.pem' was revoked, says '.*ca-crl.pem'",
    "readable by others": "the private key '.*server-key.pem' is open to other users \\(mode 640\\); chmod 600",
    "encrypted": "The private key '.*server-key.pem' is encrypted: give its password",
    "no certificate": "Unable to access the certificate '.*server-cert.pem': No such file",
    "no key": "Unable to access the private key '.*server-key.pem': No such file",
    "no CA": "Unable to access the CA certificate '.*ca-cert.pem': No such file",
    "garbage in certificate": "Unable to use the certificate '.*server-cert.pem'",
    "garbage in key": "Unable to use the private key '.*server-key.pem'",
    "garbage in CA": "Unable to use the CA certificate '.*ca-cert.pem'",
    "garbage in CRL": "Unable to use the revocation list '.*ca-crl.pem'",
}


@cases(*DEFECTS)
def test_defect(t, defect):
    need("certtool")
    _, problems = look(f"--tls-certificates={folder_of(t, defect)}", "--tls-verify-peer", status=1)
    says(problems, DEFECTS[defect])
    if defect in ("old list", "list of the future"):
        check(not any("not signed" in line for line in problems), problems)


def test_all_defects_are_told(t):
    pki = Pki(t)
    folder = pki.folder(dates=PAST, lines=("tls_www_client", "encryption_key"), key=RSA)
    os.chmod(os.path.join(folder, "server-key.pem"), 0o644)
    _, problems = look(f"--tls-certificates={folder}", "--tls-hostname=example.com", status=1)
    says(problems, "has expired", "purpose", "usage", "open to other users", "is not for 'example.com'")
    equal(len(problems), 5, f"problems {problems}")


def test_good_certificates(t):
    pki = Pki(t)
    folder = pki.folder(name="the server", dates=("expiration_days = 100",))
    good, _ = look(f"--tls-certificates={folder}", "--tls-hostname=localhost", status=0)
    says(good, "the certificate '.*' is of 'CN=the server', issued by 'CN=CA of pki', with a key EC/ECDSA of "
         "256 bits, good until 20", "the private key '.*' belongs to the certificate", "is for 'localhost'",
         "clients need no certificate")
    good, _ = look(f"--tls-certificates={folder}", "--tls-hostname=127.0.0.1", "--tls-verify-peer", status=0)
    says(good, "is for '127.0.0.1'", "only clients with a certificate of the CA")
    check(not any("server-cert.pem' has to be renewed" in line for line in good), good)
    good, _ = look(f"--tls-certificates={pki.folder()}", status=0)
    says(good, "server-cert.pem' has to be renewed soon: it is good for [45] more days")
    _, problems = look(f"--tls-certificates={folder}", "--tls-hostname=other.example", status=1)
    says(problems, "is not for 'other.example'")


def test_expired_is_not_called_good(t):
    good, _ = look(f"--tls-certificates={Pki(t).folder(dates=PAST)}", status=1)
    check(not any("server-cert.pem' is of" in line for line in good), good)


def test_empty_subject(t):
    """QEMU's clients want a name, though the alternative ones are what counts."""
    _, problems = look(f"--tls-certificates={Pki(t).folder(name='')}", status=1)
    says(problems, "server-cert.pem' has an empty subject, which QEMU")
    equal(len(problems), 1, f"problems {problems}")


def test_objects(t):
    pki = Pki(t)
    folder = pki.folder()
    encrypt_key(os.path.join(folder, "server-key.pem"), "x")
    words = ["--tls-creds=c", f"--object=tls-creds-x509,id=c,endpoint=server,dir={folder},passwordid=s"]
    look(*words, "--object=secret,id=s,data=x", status=0)
    _, problems = look(*words, "--object=secret,id=s,data=y", status=1)
    says(problems, "The password does not decrypt the private key")
    _, problems = look("--tls-creds=c", "--object=tls-creds-anon,id=c,endpoint=server,priority=BOGUS", status=1)
    says(problems, "Unable to set TLS session priority 'BOGUS'")
    # A client's credentials can be looked at too.
    client = f"--object=tls-creds-x509,id=c,dir={pki.folder('client')}"
    good, _ = look("--tls-creds=c", client, status=0)
    says(good, "client-cert.pem' is of 'CN=test client'")


@cases(("alice:12\n", "Line 1 of the pre-shared keys '.*' cannot be used"), ("", "There is no key in"),
       (f"alice:{KEY}\n\nbob{KEY}\n", "Line 3 of the pre-shared keys"),
       (f"a:{KEY}\na:{KEY}\n", "Line 2 .*: the user has a key already"),
       ("alice:00112233445566778899\n", "the pre-shared key of 'alice' is weak: it has 80 bits"))
def test_bad_keys(t, text, problem):
    path = t.file("keys", text.encode())
    os.chmod(path, 0o600)
    says(look(f"--tls-psk={path}", status=1)[1], problem)


def test_keys(t):
    path = psk_file(t, alice=KEY, bob=KEY)
    says(look(f"--tls-psk={path}", status=0)[0], "pre-shared keys in '.*': 2")
    os.chmod(path, 0o604)
    says(look(f"--tls-psk={path}", status=1)[1], "open to other users \\(mode 604\\)")
    os.remove(path)
    says(look(f"--tls-psk={path}", status=1)[1], "Unable to access the pre-shared keys")


def test_an_image_is_not_opened(t):
    path = psk_file(t, alice=KEY)
    look(f"--tls-psk={path}", t.path("no-such-image"), status=0)


def test_what_cannot_be_looked_at(t):
    for options, text in ([], "--tls-check needs something to check"), \
            (["--tls-creds=x"], "No TLS credentials with id 'x'"), \
            (["--tls-creds=x", "--object=secret,id=x,data=y"], "Object with id 'x' is not TLS credentials"):
        done = run(EVNBD, "--tls-check", *options, status=1)
        check(text in done.stderr and not done.stdout, done.stdout + done.stderr)


if __name__ == "__main__":
    main()
