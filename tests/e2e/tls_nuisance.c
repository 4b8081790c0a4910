/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A TLS client of a server of NBD that does what libraries for NBD do not:
 *
 *   tls_nuisance SOCKET renegotiate|update|heartbeat
 *   tls_nuisance SOCKET psk KEY < NAME      the name is any bytes
 *
 * It takes any certificate.  Exit status 0: the server still answers an ABORT afterwards, 3: it has
 * ended the connection, 4: there was no session, 1: this program failed.
 */
#include <errno.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <gnutls/gnutls.h>

enum { USABLE = 0, FAILED = 1, CLOSED = 3, NO_SESSION = 4 };

#define TIMES 100
#define REPLY_BYTES 20

__attribute__((noreturn)) static void die(const char *what)
{
    fprintf(stderr, "tls_nuisance: %s: %s\n", what, strerror(errno));
    exit(FAILED);
}

static int connect_to(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);

    if (fd < 0 || strlen(path) >= sizeof(address.sun_path))
        die("socket");
    strcpy(address.sun_path, path);
    if (connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
        die(path);
    return fd;
}

static const uint8_t option_head[] = {'I', 'H', 'A', 'V', 'E', 'O', 'P', 'T', 0, 0, 0};

/* Client flags and STARTTLS, and its acknowledgment. */
static void begin_tls(int fd)
{
    uint8_t out[4 + 16] = {0, 0, 0, 3}, in[18 + REPLY_BYTES];

    memcpy(out + 4, option_head, sizeof(option_head));
    out[4 + 11] = 5;
    if (write(fd, out, sizeof(out)) != sizeof(out))
        die("cannot send STARTTLS");
    if (recv(fd, in, sizeof(in), MSG_WAITALL) != sizeof(in) || in[18 + 15] != 1)
        die("no acknowledgment of STARTTLS");
}

static int answered(gnutls_session_t session)
{
    uint8_t out[16] = {0}, in[REPLY_BYTES];
    ssize_t n;

    memcpy(out, option_head, sizeof(option_head));
    out[11] = 2;
    if (gnutls_record_send(session, out, sizeof(out)) < 0)
        return CLOSED;
    do {
        n = gnutls_record_recv(session, in, sizeof(in));
    } while (n < 0 && !gnutls_error_is_fatal((int)n));
    return n == REPLY_BYTES ? USABLE : CLOSED;
}

static int renegotiate(gnutls_session_t session)
{
    for (int i = 0; i < TIMES; i++) {
        int r = gnutls_handshake(session);

        if (r == 0)
            return FAILED; /* it must not be granted */
        if (gnutls_error_is_fatal(r))
            return CLOSED;
    }
    return answered(session);
}

static int update(gnutls_session_t session)
{
    for (int i = 0; i < TIMES; i++) {
        if (gnutls_session_key_update(session, GNUTLS_KU_PEER) < 0)
            return CLOSED;
    }
    return answered(session);
}

/* A record of the heartbeat protocol that says it has more than it has (CVE-2014-0160). */
static int heartbeat(gnutls_session_t session, int fd)
{
    static const uint8_t record[] = {24, 3, 3, 0, 3, 1, 0x40, 0};

    if (write(fd, record, sizeof(record)) != sizeof(record))
        return CLOSED;
    return answered(session);
}

static int act(gnutls_session_t session, int fd, const char *what)
{
    if (strcmp(what, "renegotiate") == 0)
        return renegotiate(session);
    return strcmp(what, "update") == 0 ? update(session) : heartbeat(session, fd);
}

static gnutls_session_t new_session(const char *priority, int type, void *credentials)
{
    gnutls_session_t session;

    if (gnutls_init(&session, GNUTLS_CLIENT) < 0 ||
        gnutls_priority_set_direct(session, priority, NULL) < 0 ||
        gnutls_credentials_set(session, (gnutls_credentials_type_t)type, credentials) < 0)
        die("GnuTLS");
    return session;
}

static int shake(gnutls_session_t session, int fd)
{
    int r;

    gnutls_transport_set_int(session, fd);
    do {
        r = gnutls_handshake(session);
    } while (r < 0 && !gnutls_error_is_fatal(r));
    if (r < 0)
        fprintf(stderr, "tls_nuisance: %s\n", gnutls_strerror(r));
    return r;
}

static int with_certificates(int fd, const char *what)
{
    bool old = strcmp(what, "renegotiate") == 0;
    gnutls_certificate_credentials_t credentials;
    gnutls_session_t session;
    int status = NO_SESSION;

    gnutls_certificate_allocate_credentials(&credentials);
    session = new_session(old ? "NORMAL:-VERS-ALL:+VERS-TLS1.2" : "NORMAL", GNUTLS_CRD_CERTIFICATE,
                          credentials);
    if (shake(session, fd) == 0)
        status = act(session, fd, what);
    gnutls_deinit(session);
    gnutls_certificate_free_credentials(credentials);
    return status;
}

static int with_key(int fd, const char *key)
{
    static uint8_t name[UINT16_MAX];
    gnutls_datum_t user = {name, (unsigned)fread(name, 1, sizeof(name), stdin)};
    gnutls_datum_t secret = {(uint8_t *)(uintptr_t)key, (unsigned)strlen(key)};
    gnutls_psk_client_credentials_t credentials;
    gnutls_session_t session;
    int status;

    gnutls_psk_allocate_client_credentials(&credentials);
    if (gnutls_psk_set_client_credentials2(credentials, &user, &secret, GNUTLS_PSK_KEY_HEX) < 0)
        die("the key");
    session = new_session("NORMAL:-KX-ALL:+ECDHE-PSK:+PSK", GNUTLS_CRD_PSK, credentials);
    status = shake(session, fd) == 0 ? answered(session) : NO_SESSION;
    gnutls_deinit(session);
    gnutls_psk_free_client_credentials(credentials);
    return status;
}

int main(int argc, char **argv)
{
    int fd;

    if (argc < 3)
        return FAILED;
    signal(SIGPIPE, SIG_IGN);
    fd = connect_to(argv[1]);
    begin_tls(fd);
    if (strcmp(argv[2], "psk") == 0)
        return argc == 4 ? with_key(fd, argv[3]) : FAILED;
    return with_certificates(fd, argv[2]);
}
