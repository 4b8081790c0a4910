# SPDX-License-Identifier: BSD-3-Clause
"""Certificates and keys for tests, made by certtool while they run, good ones and one for each defect.

A Pki is a directory with a CA.  folder() makes a directory of credentials as servers and clients want
it: ca-cert.pem, server-cert.pem and so on.
"""
import base64
import os
import shutil
import ssl

from evnbd_test import EVNBD, check, need, read_file, run, skip, write_file

ECDSA = ("--key-type=ecdsa", "--curve=secp256r1")
ECDSA_SHA256 = bytes.fromhex("2a8648ce3d040302")
RSA = ("--key-type=rsa", "--bits=2048")
KEY = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"


def need_tls(t):
    """Skips the test when evnbd was built without TLS."""
    done = run(EVNBD, "-f", "raw", "--tls-psk=/nowhere", t.file(f"probe{t.number()}", bytes(512)), status=1)
    if "without GnuTLS" in done.stderr:
        skip("evnbd was built without TLS")


class Pki:
    def __init__(self, t, name="pki", key=ECDSA):
        need("certtool")
        need_tls(t)
        self.dir = t.path(name)
        self.key = key
        self.count = 0
        os.mkdir(self.dir)
        self.ca_key, self.ca = self.key_pair("ca"), self.path("ca-cert.pem")
        self.make_ca()

    def path(self, name):
        return os.path.join(self.dir, name)

    def key_pair(self, name, key=None):
        path = self.path(f"{name}-key.pem")
        run("certtool", "--generate-privkey", *(key or self.key), "--outfile", path)
        return path

    def template(self, lines):
        self.count += 1
        return write_file(self.path(f"template{self.count}"), "".join(f"{line}\n" for line in lines).encode())

    def make_ca(self, *lines, out=None, name=None):
        lines = lines or ("ca", "cert_signing_key", "crl_signing_key", "expiration_days = 10")
        run("certtool", "--generate-self-signed", "--load-privkey", self.ca_key, "--outfile", out or self.ca,
            "--template", self.template([f'cn = "CA of {name or os.path.basename(self.dir)}"', *lines]))

    def issue(self, key, out, *lines, name="localhost"):
        """A certificate of the CA for the key; `lines` of certtool's template."""
        run("certtool", "--generate-certificate", "--load-privkey", key, "--load-ca-certificate", self.ca,
            "--load-ca-privkey", self.ca_key, "--outfile", out,
            "--template", self.template([*([f'cn = "{name}"'] if name else []), *lines]))

    def folder(self, role="server", lines=None, name=None, key=None, folder=None, dates=("expiration_days = 5",)):
        """A directory with the credentials of a server or client."""
        self.count += 1
        folder = folder or self.path(f"{role}{self.count}")
        os.makedirs(folder, exist_ok=True)
        shutil.copy(self.ca, os.path.join(folder, "ca-cert.pem"))
        made = self.key_pair(f"made{self.count}", key)
        shutil.copy(made, os.path.join(folder, f"{role}-key.pem"))
        os.chmod(os.path.join(folder, f"{role}-key.pem"), 0o600)
        if lines is None:
            lines = (f"tls_www_{role}", "signing_key", 'dns_name = "localhost"', 'ip_address = "127.0.0.1"')
        self.issue(made, os.path.join(folder, f"{role}-cert.pem"), *lines, *dates,
                   name=("localhost" if role == "server" else "test client") if name is None else name)
        return folder

    def revoke(self, folder, certificate, *dates):
        """Puts a revocation list with the certificate into the folder, in one step."""
        path = os.path.join(folder, "ca-crl.pem")
        run("certtool", "--generate-crl", "--load-ca-privkey", self.ca_key, "--load-ca-certificate", self.ca,
            "--load-certificate", certificate, "--outfile", path + ".new",
            "--template", self.template([*(dates or ["crl_next_update = 5"]), "crl_number = 1"]))
        os.rename(path + ".new", path)

    def bad_list(self, t, defect, folder, certificate):
        """Puts a list into the folder that revokes the certificate and has a defect; BAD_LISTS has them all."""
        if defect == "list of another CA":
            Pki(t, "another").revoke(folder, certificate)
        elif defect == "forged list":
            forger = Pki(t, "forger")
            forger.make_ca(name=os.path.basename(self.dir))
            forger.revoke(folder, certificate)
        elif defect == "list of an unknown kind":
            self.revoke(folder, certificate)
            path = os.path.join(folder, "ca-crl.pem")
            lines = read_file(path).split(b"-----")
            der = base64.b64decode(lines[2])
            check(ECDSA_SHA256 in der, "the algorithm of the list was not found")
            lines[2] = b"\n" + base64.encodebytes(der.replace(ECDSA_SHA256, ECDSA_SHA256[:-1] + b"\x09"))
            write_file(path, b"-----".join(lines))
        elif defect == "list of the future":
            self.revoke(folder, certificate, 'crl_this_update_date = "2120-01-01 00:00:00 UTC"',
                        'crl_next_update_date = "2121-01-01 00:00:00 UTC"')
        else:
            self.revoke(folder, certificate, 'crl_this_update_date = "2020-01-01 00:00:00 UTC"',
                        'crl_next_update_date = "2020-02-01 00:00:00 UTC"')


NOT_SIGNED = "Unable to use the revocation list '.*ca-crl.pem': its list of 'CN=CA of %s' is not signed by a CA in"
BAD_LISTS = {
    "list of another CA": NOT_SIGNED % "another",
    "forged list": NOT_SIGNED % "pki",
    "list of an unknown kind": NOT_SIGNED % "pki",
    "list of the future": "ca-crl.pem': its list of 'CN=CA of pki' is not valid before 2120-01-01",
}
PAST = ('activation_date = "2020-01-01 00:00:00 UTC"', 'expiration_date = "2020-02-01 00:00:00 UTC"')
FUTURE = ('activation_date = "2120-01-01 00:00:00 UTC"', 'expiration_date = "2121-01-01 00:00:00 UTC"')


def encrypt_key(path, password):
    run("certtool", "--to-p8", f"--password={password}", "--load-privkey", path, "--outfile", path + ".new")
    os.chmod(path + ".new", 0o600)
    os.rename(path + ".new", path)


def psk_file(t, name="keys.psk", **users):
    need_tls(t)
    folder = t.path(f"psk{t.number()}")
    os.mkdir(folder)
    path = os.path.join(folder, name)
    write_file(path, "".join(f"{user}:{key}\n" for user, key in users.items()).encode())
    os.chmod(path, 0o600)
    return path


def client_context(folder=None, version=None, ciphers=None):
    """An OpenSSL client that trusts anybody; with a folder, one that shows its certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if ciphers:
        context.set_ciphers(ciphers)
    if version:
        context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
        context.maximum_version = version
    if folder:
        context.load_cert_chain(os.path.join(folder, "client-cert.pem"), os.path.join(folder, "client-key.pem"))
    return context
