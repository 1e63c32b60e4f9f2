/* The handshaking client of the benchmark: keeps N connections busy for some seconds. Each shakes hands (TLS 1.3), sends the
 * request, reads the short answer to its end, closes, and makes room for the next.
 *
 *   handshake-load HOST PORT CONNECTIONS full|resumed SERVER_NAME WARMUP_SECONDS SECONDS < request
 *
 * resumed: by the newest ticket of its predecessor. Prints what load prints, and how many of the counted connections were
 * resumed.
 *
 * A TLS library's client spends more on a handshake than the gateway does, and would be what is measured. This one does
 * the least that a server cannot tell from the real thing: one key share for all connections, and neither certificate nor
 * signature is looked at. It offers one cipher (AES-128-GCM) and one group (X25519), so every server does the same work.
 * That it computes the right keys is shown by each record: GCM refuses others. The names are those of RFC 8446. */
#define OPENSSL_SUPPRESS_DEPRECATED /* SHA256_Init: the new interface costs more than the hash */
#define _GNU_SOURCE
#include "common.h"
#include <errno.h>
#include <netinet/tcp.h>
#include <openssl/evp.h>
#include <openssl/sha.h>
#include <sys/epoll.h>

enum {
  CONNECTIONS_MAX = 1024,
  HASH = 32,
  KEY = 16,
  IV = 12,
  TAG = 16,
  RECORD_MAX = 5 + 16384 + 256,
  HELLO_MAX = 4096,
  TICKET_MAX = 2048,
  FLIGHT_MAX = 16384
};
enum { CHANGE_CIPHER_SPEC = 20, ALERT = 21, HANDSHAKE = 22, APPLICATION_DATA = 23 };
enum { SERVER_HELLO = 2, NEW_SESSION_TICKET = 4, FINISHED = 20 };

struct keys {
  uint8_t key[KEY], iv[IV];
  uint64_t sequence;
};
struct ticket {
  uint8_t bytes[TICKET_MAX], psk[HASH];
  size_t length; /* 0: none yet */
  uint32_t age_add;
  uint64_t received_ns;
};

static struct connection {
  int fd, sent, resumed;
  enum { HELLO, SHAKING, SHAKEN } state;
  uint64_t started_ns, got;
  SHA256_CTX transcript;
  uint8_t psk[HASH], handshake_secret[HASH], client_handshake[HASH], resumption_master[HASH];
  struct keys reading;
  uint8_t in[2 * RECORD_MAX], flight[FLIGHT_MAX];
  size_t in_length, flight_length;
  struct ticket ticket;
} connections[CONNECTIONS_MAX];

static int ep, resuming;
static const char *server_name;
static uint64_t finished, failed, bytes, resumed, in_a_row, until_ns;
static const char *last_error = "";
static EVP_CIPHER *gcm;
static EVP_CIPHER_CTX *cipher;
static EVP_PKEY *own_key;
static uint8_t key_share[32], no_hash[HASH], nothing[HASH];

/* ---- hashes and the key schedule ---- */

static void hmac(const uint8_t key[HASH], const uint8_t *data, size_t length, uint8_t out[HASH]) {
  uint8_t pad[64], inner[HASH];
  SHA256_CTX c;
  for (int i = 0; i < 64; i++) pad[i] = (i < HASH ? key[i] : 0) ^ 0x36;
  SHA256_Init(&c), SHA256_Update(&c, pad, 64), SHA256_Update(&c, data, length), SHA256_Final(inner, &c);
  for (int i = 0; i < 64; i++) pad[i] ^= 0x36 ^ 0x5c;
  SHA256_Init(&c), SHA256_Update(&c, pad, 64), SHA256_Update(&c, inner, HASH), SHA256_Final(out, &c);
}

static void expand_label(const uint8_t secret[HASH], const char *label, const uint8_t *context, size_t context_length,
                         uint8_t *out, size_t length) {
  uint8_t info[600], result[HASH];
  size_t n = 0, label_length = strlen(label);
  info[n++] = 0, info[n++] = length;
  info[n++] = 6 + label_length;
  memcpy(info + n, "tls13 ", 6), n += 6;
  memcpy(info + n, label, label_length), n += label_length;
  info[n++] = context_length;
  memcpy(info + n, context, context_length), n += context_length;
  info[n++] = 1; /* HKDF's first block is all we need */
  hmac(secret, info, n, result);
  memcpy(out, result, length);
}

static void derive(const uint8_t secret[HASH], const char *label, const uint8_t hash[HASH], uint8_t out[HASH]) {
  expand_label(secret, label, hash, HASH, out, HASH);
}

static void hash_so_far(const struct connection *c, uint8_t out[HASH]) {
  SHA256_CTX copy = c->transcript;
  SHA256_Final(out, &copy);
}

static struct keys keys_of(const uint8_t secret[HASH]) {
  struct keys k = {0};
  expand_label(secret, "key", NULL, 0, k.key, KEY);
  expand_label(secret, "iv", NULL, 0, k.iv, IV);
  return k;
}

static void nonce_of(struct keys *k, uint8_t nonce[IV]) {
  memcpy(nonce, k->iv, IV);
  for (int i = 0; i < 8; i++) nonce[IV - 1 - i] ^= k->sequence >> (8 * i);
  k->sequence++;
}

/* Writes a whole record to `out`, returns its length. */
static size_t protect(struct keys *k, uint8_t type, const void *data, size_t length, uint8_t *out) {
  uint8_t nonce[IV], end = type;
  int n;
  size_t body = length + 1 + TAG;
  uint8_t header[5] = {APPLICATION_DATA, 3, 3, body >> 8, body};
  memcpy(out, header, 5);
  nonce_of(k, nonce);
  EVP_EncryptInit_ex2(cipher, gcm, k->key, nonce, NULL);
  EVP_EncryptUpdate(cipher, NULL, &n, header, 5);
  EVP_EncryptUpdate(cipher, out + 5, &n, data, length);
  EVP_EncryptUpdate(cipher, out + 5 + length, &n, &end, 1);
  EVP_EncryptFinal_ex(cipher, out + 5 + length + 1, &n);
  EVP_CIPHER_CTX_ctrl(cipher, EVP_CTRL_AEAD_GET_TAG, TAG, out + 5 + length + 1);
  return 5 + body;
}

/* In place; the length of what was in the record without its type, or -1. */
static int unprotect(struct keys *k, uint8_t *record, size_t body, uint8_t *type) {
  uint8_t nonce[IV];
  int n;
  if (body < TAG + 1) return -1;
  nonce_of(k, nonce);
  EVP_DecryptInit_ex2(cipher, gcm, k->key, nonce, NULL);
  EVP_DecryptUpdate(cipher, NULL, &n, record, 5);
  EVP_DecryptUpdate(cipher, record + 5, &n, record + 5, body - TAG);
  EVP_CIPHER_CTX_ctrl(cipher, EVP_CTRL_AEAD_SET_TAG, TAG, record + 5 + body - TAG);
  if (EVP_DecryptFinal_ex(cipher, record + 5, &n) != 1) return -1;
  int length = body - TAG;
  while (length > 0 && record[5 + length - 1] == 0) length--; /* padding */
  if (length == 0) return -1;
  *type = record[5 + length - 1];
  return length - 1;
}

/* ---- the messages ---- */

static uint8_t *put16(uint8_t *p, unsigned value) {
  p[0] = value >> 8, p[1] = value;
  return p + 2;
}
static unsigned get16(const uint8_t *p) { return p[0] << 8 | p[1]; }

static uint8_t *put_extension(uint8_t *p, unsigned type, const void *data, size_t length) {
  p = put16(put16(p, type), length);
  memcpy(p, data, length);
  return p + length;
}

/* Room for the ticket's identity and binder; the binder is computed when the rest is there. */
static uint8_t *put_pre_shared_key(uint8_t *p, const struct ticket *t) {
  p = put16(put16(p, 41), 2 + 2 + t->length + 4 + 2 + 1 + HASH);
  p = put16(put16(p, 2 + t->length + 4), t->length);
  memcpy(p, t->bytes, t->length), p += t->length;
  uint32_t age = (uint32_t)((now_ns() - t->received_ns) / 1000000) + t->age_add;
  p = put16(put16(p, age >> 16), age);
  p = put16(p, 1 + HASH);
  *p++ = HASH;
  return p + HASH;
}

static size_t client_hello(struct connection *c, uint8_t *record) {
  static uint64_t serial;
  const struct ticket *ticket = resuming && c->ticket.length ? &c->ticket : NULL;
  uint8_t *message = record + 5, *p = message + 4;
  *p++ = 3, *p++ = 3;
  memset(p, 0x5a, 32), serial++, memcpy(p, &serial, sizeof serial), p += 32; /* "random": different is enough */
  *p++ = 0;                                                                   /* session id */
  p = put16(put16(p, 2), 0x1301);                                             /* TLS_AES_128_GCM_SHA256 */
  *p++ = 1, *p++ = 0;                                                         /* no compression */
  uint8_t *extensions = p, body[300];
  size_t name = strlen(server_name);
  p += 2;
  put16(body, name + 3), body[2] = 0, put16(body + 3, name), memcpy(body + 5, server_name, name);
  p = put_extension(p, 0, body, name + 5);
  p = put_extension(p, 10, "\0\2\0\x1d", 4); /* supported groups: x25519 */
  p = put_extension(p, 13, "\0\2\4\3", 4);   /* signatures: ecdsa_secp256r1_sha256 */
  p = put_extension(p, 43, "\2\3\4", 3);     /* versions: 1.3 */
  p = put_extension(p, 45, "\1\1", 2);       /* psk_dhe_ke */
  memcpy(body, "\0\x24\0\x1d\0\x20", 6), memcpy(body + 6, key_share, 32);
  p = put_extension(p, 51, body, 38);
  if (ticket) p = put_pre_shared_key(p, ticket);
  put16(extensions, p - extensions - 2);
  size_t length = p - message - 4;
  message[0] = 1, message[1] = 0, put16(message + 2, length);
  memcpy(record, "\x16\3\1", 3), put16(record + 3, length + 4);

  memset(c->psk, 0, HASH);
  if (ticket) {
    uint8_t early[HASH], binder_key[HASH], finished_key[HASH], hash[HASH];
    memcpy(c->psk, ticket->psk, HASH);
    hmac(nothing, c->psk, HASH, early);
    derive(early, "res binder", no_hash, binder_key);
    expand_label(binder_key, "finished", NULL, 0, finished_key, HASH);
    SHA256(message, length + 4 - (2 + 1 + HASH), hash);
    hmac(finished_key, hash, HASH, p - HASH);
  }
  SHA256_Init(&c->transcript);
  SHA256_Update(&c->transcript, message, length + 4);
  return length + 4 + 5;
}

static const char *server_hello(struct connection *c, const uint8_t *message, size_t length) {
  const uint8_t *end = message + length, *p = message + 4 + 2 + 32, *share = NULL;
  if (length < 44 || p + 1 + *p + 5 > end) return "a short ServerHello";
  p += 1 + *p + 2 + 1;
  for (p += 2; p + 4 <= end && p + 4 + get16(p + 2) <= end; p += 4 + get16(p + 2)) {
    if (get16(p) == 51 && get16(p + 2) == 36) share = p + 8;
    if (get16(p) == 41) c->resumed = 1;
  }
  if (!share) return "a ServerHello without the key share";
  if (!c->resumed) memset(c->psk, 0, HASH);

  uint8_t shared[32], early[HASH], secret[HASH], hash[HASH];
  size_t shared_length = sizeof shared;
  EVP_PKEY *peer = EVP_PKEY_new_raw_public_key(EVP_PKEY_X25519, NULL, share, 32);
  EVP_PKEY_CTX *exchange = EVP_PKEY_CTX_new(own_key, NULL);
  int ok = EVP_PKEY_derive_init(exchange) == 1 && EVP_PKEY_derive_set_peer_ex(exchange, peer, 0) == 1 &&
           EVP_PKEY_derive(exchange, shared, &shared_length) == 1;
  EVP_PKEY_CTX_free(exchange);
  EVP_PKEY_free(peer);
  if (!ok) return "no shared secret";

  SHA256_Update(&c->transcript, message, length);
  hash_so_far(c, hash);
  hmac(nothing, c->psk, HASH, early);
  derive(early, "derived", no_hash, secret);
  hmac(secret, shared, 32, c->handshake_secret);
  derive(c->handshake_secret, "c hs traffic", hash, c->client_handshake);
  derive(c->handshake_secret, "s hs traffic", hash, secret);
  c->reading = keys_of(secret);
  c->state = SHAKING;
  return NULL;
}

/* The server has finished: so do we, and ask. */
static const char *finish(struct connection *c) {
  uint8_t out[REQUEST_BYTES_MAX + 512], hash[HASH], secret[HASH], master[HASH], finished_key[HASH];
  uint8_t message[4 + HASH] = {FINISHED, 0, 0, HASH};
  hash_so_far(c, hash);
  expand_label(c->client_handshake, "finished", NULL, 0, finished_key, HASH);
  hmac(finished_key, hash, HASH, message + 4);
  struct keys shaking = keys_of(c->client_handshake);
  size_t length = protect(&shaking, HANDSHAKE, message, sizeof message, out);

  derive(c->handshake_secret, "derived", no_hash, secret);
  hmac(secret, nothing, HASH, master);
  derive(master, "s ap traffic", hash, secret);
  c->reading = keys_of(secret);
  derive(master, "c ap traffic", hash, secret);
  struct keys writing = keys_of(secret);
  length += protect(&writing, APPLICATION_DATA, request, request_bytes, out + length);
  if (resuming) {
    SHA256_Update(&c->transcript, message, sizeof message);
    hash_so_far(c, hash);
    derive(master, "res master", hash, c->resumption_master);
  }
  c->state = SHAKEN;
  /* Little was sent so far: there is room. */
  return send(c->fd, out, length, MSG_NOSIGNAL) == (ssize_t)length ? NULL : "the request could not be sent";
}

static void keep_ticket(struct connection *c, const uint8_t *message, size_t length) {
  const uint8_t *nonce = message + 4 + 8, *ticket = nonce + 1 + *nonce;
  size_t ticket_length = get16(ticket);
  if (ticket + 2 + ticket_length > message + length || ticket_length > TICKET_MAX) return;
  struct ticket *t = &c->ticket;
  t->age_add = (uint32_t)get16(message + 8) << 16 | get16(message + 10);
  expand_label(c->resumption_master, "resumption", nonce + 1, *nonce, t->psk, HASH);
  memcpy(t->bytes, ticket + 2, ticket_length);
  t->length = ticket_length;
  t->received_ns = now_ns();
}

/* Whole messages of the flight; what is left waits for the next record. */
static const char *handshake_messages(struct connection *c) {
  size_t at = 0;
  for (; c->flight_length - at >= 4;) {
    const uint8_t *message = c->flight + at;
    size_t length = 4 + ((size_t)message[1] << 16 | get16(message + 2));
    if (length > FLIGHT_MAX) return "a message that is too long";
    if (c->flight_length - at < length) break;
    at += length;
    if (c->state == SHAKEN) {
      if (message[0] == NEW_SESSION_TICKET && resuming) keep_ticket(c, message, length);
      continue;
    }
    SHA256_Update(&c->transcript, message, length);
    const char *problem = message[0] == FINISHED ? finish(c) : NULL;
    if (problem) return problem;
  }
  memmove(c->flight, c->flight + at, c->flight_length - at);
  c->flight_length -= at;
  return NULL;
}

/* ---- connections ---- */

static void begin(struct connection *c) {
  c->sent = c->resumed = 0;
  c->state = HELLO;
  c->got = c->in_length = c->flight_length = 0;
  c->started_ns = now_ns();
  c->fd = socket(target.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.ptr = c};
  if (c->fd < 0 || setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int))) die("socket");
  if (connect(c->fd, (struct sockaddr *)&target, target_size) && errno != EINPROGRESS) die("connect");
  /* Not before: a socket that goes nowhere yet has an event of its own. */
  if (epoll_ctl(ep, EPOLL_CTL_ADD, c->fd, &event)) die("epoll_ctl");
}

static void over(struct connection *c, const char *problem) {
  if (problem || !c->got) {
    failed++;
    last_error = problem ? problem : "closed without an answer";
    if (++in_a_row > FAILURES_MAX) {
      fprintf(stderr, "every connection fails: %s\n", last_error);
      exit(1);
    }
  } else {
    finished++;
    resumed += c->resumed;
    in_a_row = 0;
  }
  close(c->fd);
  begin(c);
}

/* "" is the peer's goodbye; NULL: go on. */
static const char *record(struct connection *c, uint8_t *bytes_in, size_t body) {
  uint8_t type = bytes_in[0];
  if (type == CHANGE_CIPHER_SPEC) return NULL;
  if (c->state == HELLO) {
    if (type != HANDSHAKE || bytes_in[5] != SERVER_HELLO) return "something else than a ServerHello";
    return server_hello(c, bytes_in + 5, body);
  }
  int length = unprotect(&c->reading, bytes_in, body, &type);
  if (length < 0) return "a record with another key";
  if (type == ALERT) return length == 2 && bytes_in[6] == 0 ? "" : "an alert";
  if (type == HANDSHAKE) {
    if (c->flight_length + length > FLIGHT_MAX) return "a flight that is too long";
    memcpy(c->flight + c->flight_length, bytes_in + 5, length);
    c->flight_length += length;
    return handshake_messages(c);
  }
  if (!c->got) note_latency(c->started_ns);
  c->got += length;
  bytes += length;
  return NULL;
}

static void advance(struct connection *c) {
  if (!c->sent) {
    uint8_t hello[HELLO_MAX];
    size_t length = client_hello(c, hello);
    if (send(c->fd, hello, length, MSG_NOSIGNAL) != (ssize_t)length) {
      if (errno == EAGAIN) return; /* still on its way; the hello is made anew */
      over(c, strerror(errno));
      return;
    }
    c->sent = 1;
  }
  while (now_ns() < until_ns) {
    ssize_t n = recv(c->fd, c->in + c->in_length, sizeof c->in - c->in_length, 0);
    if (n < 0 && errno == EAGAIN) return;
    if (n <= 0) {
      over(c, n < 0 ? strerror(errno) : c->state == SHAKEN ? NULL : "closed in the handshake");
      return;
    }
    c->in_length += n;
    size_t at = 0;
    while (c->in_length - at >= 5) {
      size_t body = get16(c->in + at + 3);
      if (body > RECORD_MAX - 5) {
        over(c, "a record that is too long");
        return;
      }
      if (c->in_length - at < 5 + body) break;
      const char *problem = record(c, c->in + at, body);
      if (problem) {
        over(c, *problem ? problem : NULL);
        return;
      }
      at += 5 + body;
    }
    memmove(c->in, c->in + at, c->in_length - at);
    c->in_length -= at;
  }
}

static void run_until(uint64_t deadline_ns) {
  until_ns = deadline_ns;
  for (uint64_t now; (now = now_ns()) < deadline_ns;) {
    struct epoll_event events[EVENTS];
    int n = epoll_wait(ep, events, EVENTS, (int)((deadline_ns - now) / 1000000) + 1);
    for (int i = 0; i < n; i++) advance(events[i].data.ptr);
  }
}

int main(int argc, char **argv) {
  resuming = argc > 4 && strcmp(argv[4], "resumed") == 0;
  if (argc != 8 || (!resuming && strcmp(argv[4], "full") != 0) || strlen(argv[5]) > 200) {
    fprintf(stderr, "usage: handshake-load HOST PORT CONNECTIONS full|resumed SERVER_NAME WARMUP_SECONDS SECONDS < request\n");
    return 2;
  }
  set_target(argv[1], argv[2]);
  int count = atoi(argv[3]);
  server_name = argv[5];
  if (count < 1 || count > CONNECTIONS_MAX) return fprintf(stderr, "1 to %d connections\n", CONNECTIONS_MAX), 2;
  read_request();
  SHA256(NULL, 0, no_hash);
  size_t share_length = sizeof key_share;
  gcm = EVP_CIPHER_fetch(NULL, "AES-128-GCM", NULL);
  cipher = EVP_CIPHER_CTX_new();
  own_key = EVP_PKEY_Q_keygen(NULL, NULL, "X25519");
  if (!gcm || !cipher || !own_key || EVP_PKEY_get_raw_public_key(own_key, key_share, &share_length) != 1) die("libcrypto");

  ep = epoll_create1(EPOLL_CLOEXEC);
  uint64_t start = now_ns() + (uint64_t)(atof(argv[6]) * 1e9);
  until_ns = start;
  for (int i = 0; i < count; i++) begin(&connections[i]);
  run_until(start);

  finished = failed = bytes = resumed = 0;
  memset(latency, 0, sizeof latency);
  puts("measuring");
  fflush(stdout);
  double busy = busy_seconds();
  start = now_ns();
  until_ns = start + (uint64_t)(atof(argv[7]) * 1e9);
  /* Events are edges: one that the end of the warm-up left half read would not be told again. */
  for (int i = 0; i < count; i++) advance(&connections[i]);
  run_until(until_ns);
  double seconds = (now_ns() - start) / 1e9;
  busy = busy_seconds() - busy;

  printf("{\"seconds\":%.3f,\"connections\":%llu,\"failed\":%llu,\"bytes\":%llu,\"resumed\":%llu,\"busySeconds\":%.2f,"
         "\"p50us\":%d,\"p99us\":%d,\"lastError\":\"%s\"}\n",
         seconds, (unsigned long long)finished, (unsigned long long)failed, (unsigned long long)bytes,
         (unsigned long long)resumed, busy, percentile(0.50), percentile(0.99), failed ? last_error : "");
  return 0;
}
