// Every limit of the program, one exported constant each, with its unit in the name: where the number comes from and what
// happens at the limit.

/** TLS allows 2^24 - 1 bytes, but BoringSSL, which terminates here, refuses any ClientHello above 16 KiB; real ones have
 * 0.2 to 2 KiB. A longer one is refused as `oversize` as soon as its length is read. */
export const CLIENT_HELLO_MESSAGE_BYTES_MAX = 16 * 1024

/** What may be buffered while waiting for a ClientHello: the largest message with its 4-byte header, and 64 record headers of
 * 5 bytes (one full record needs one; clients that cut a usual hello into one-byte records stay below it too). Above: `oversize`. */
export const CLIENT_HELLO_BYTES_MAX = CLIENT_HELLO_MESSAGE_BYTES_MAX + 4 + 64 * 5

/** The request head of a redirect: what nginx and Apache allow for one line by default, more than browsers send in all. Above: `oversize`. */
export const HTTP_HEAD_BYTES_MAX = 8 * 1024

/** The longest registered method has 17 letters (UPDATEREDIRECTREF); anything longer is some other protocol, and is refused. */
export const HTTP_METHOD_BYTES_MAX = 32

/** A PROXY protocol header: the addresses of version 2 have up to 216 bytes, the rest is for what a proxy tells of TLS (a client's
 * certificate subject, ALPN). Above: `malformed_proxy_header`. */
export const PROXY_HEADER_BYTES_MAX = 4096

/** A certificate or key file. A chain of four RSA certificates has 8 KiB; a whole system trust store 250 KiB. Above: the file is refused. */
export const CERTIFICATE_FILE_BYTES_MAX = 256 * 1024

/** Certificates in one chain file: real chains have 2 to 4. Above: the file is refused (it is a trust store, not a chain). */
export const CERTIFICATE_CHAIN_MAX = 16

/** Names in one certificate: what Let's Encrypt allows. Above: the certificate is not issued. */
export const CERTIFICATE_NAMES_MAX = 100

/** Locally issued certificates kept in memory, about 4 KiB each. Above: the least recently used is forgotten and issued again when asked for. */
export const ISSUED_CERTIFICATES_MAX = 1000

/** Life of a locally issued certificate: browsers refuse more than 398 days (CA/Browser Forum SC-31). */
export const ISSUED_CERTIFICATE_DAYS = 397

/** Life of the local authority: it is installed by hand in every client's trust store, so it outlives the gateway's hardware. */
export const AUTHORITY_DAYS = 3653

/** Certificates that are asked of a CA at the same time: Let's Encrypt allows 300 new orders in three hours. Above: they wait for their turn. */
export const ORDERS_MAX = 10

/** One order, from its beginning to the certificate: a CA takes seconds, and up to minutes when it is busy. Above: the attempt has failed. */
export const ORDER_MS_MAX = 180_000

/** One request to a CA. Above: the attempt has failed. */
export const ACME_REQUEST_MS_MAX = 30_000

/** One answer of a CA; a chain has up to 20 KiB. Above: the attempt has failed. */
export const ACME_ANSWER_BYTES_MAX = 256 * 1024

/** How often a CA that answers with an error of its own is asked the same thing, within a second or two. */
export const ACME_ASKS_MAX = 3

/** A CA that says more often that what was asked for is elsewhere goes round in circles. */
export const ACME_REDIRECTS_MAX = 3

/** Requests that a CA may answer with "bad nonce" one after the other; after a restart of the CA it is one. Above: the attempt has failed. */
export const ACME_NONCES_MAX = 15

/** Between two looks at whether a CA has made up its mind, unless it names a time within these bounds itself. */
export const ACME_POLL_MS_MIN = 250
export const ACME_POLL_MS_MAX = 10_000

/** What a CA says of an error goes into logs, status and events up to this length. */
export const ACME_ERROR_LENGTH_MAX = 300

/** From the first failure of an order to the next attempt, twice as long after each further one, up to the second number: a CA that was
 * down overnight is asked again the same morning. */
export const ACME_RETRY_MS_MIN = 60_000
export const ACME_RETRY_MS_MAX = 6 * 3_600_000

/** The longest wait a CA may ask for: the limits of public CAs are for a week at most. */
export const ACME_RETRY_AFTER_MS_MAX = 7 * 86_400_000

/** Between two questions for a CA's renewal information, within which it may name a time itself (RFC 9773, section 4.3.2). */
export const RENEWAL_LOOK_MS_MIN = 60_000
export const RENEWAL_LOOK_MS_MAX = 86_400_000

/** Between two such questions when the last one was not answered (RFC 9773, section 4.3.3). */
export const RENEWAL_LOOK_MS = 6 * 3_600_000

/** While another gateway asks for the same certificate: how often its result is looked for, besides being told of it. */
export const ISSUE_LOOK_MS = 2000

/** A store that does not answer is asked again after this time. */
export const STORE_RETRY_MS = 30_000

/** What a stop waits for orders to let go of their challenges and locks. Above: both end by themselves, for they have a life of their own. */
export const ACME_STOP_MS_MAX = 3000

/** Grid of the user plane's deadlines. They are seconds to hours long: a tenth of a second more does not matter. */
export const TIMER_TICK_MS = 100

/** How long connection events are collected before they are reported: short for a person, long for a storm (about 50 connections). */
export const REPORT_INTERVAL_MS = 5

/** A connection waits this long for its opening to be on disk (durable access log): a busy disk takes seconds, and the client gives up
 * after ten or so. Above: it ends with not_logged. */
export const OPENING_WRITTEN_MS_MAX = 5000

/** One line in this time about an access log that cannot be written. Above: not said again. */
export const ACCESS_LOG_ERROR_INTERVAL_MS = 1000

/** Held for a target that is not connected yet; what a browser sends before it needs an answer fits. Above: the client is not read any further. */
export const PENDING_BYTES_MAX = 64 * 1024

/** Targets tried for one connection; each may cost the whole connect timeout. Above: the connection ends with the last one's reason. */
export const DIAL_TARGETS_MAX = 8

/** Addresses tried of one name. Above: the rest of the resolver's answer is ignored. */
export const DIAL_ADDRESSES_MAX = 4

/** Clients remembered by one rate limit, about 100 bytes each. Above: the one that came first is forgotten, and may come again. */
export const RATE_CLIENTS_MAX = 65_536

/** Descriptors kept for everything that is no connection: libraries, the channel, DNS, files of handlers, pipes of the relay. At this
 * many left accepting pauses, and the backlog of the kernel waits. */
export const DESCRIPTORS_RESERVED = 64

/** Accepting goes on when this many more are free (a sixteenth of a small limit): enough for a crowd, not one by one. */
export const DESCRIPTORS_GAP_MAX = 256

/** How often the descriptors are looked at while connections come and go: handlers may have opened any number of files. */
export const ACCEPT_LOOK_MS = 1000

/** While paused, a connection that ends is reason to look again, this often at most: a look costs a call for each free one. */
export const ACCEPT_RETRY_MS = 50

/** How often connections are looked for that nothing would end any more; what is found twice is ended. */
export const SWEEP_MS = 10_000

/** Connections that are looked at before others have their turn: about a microsecond each, one more of those in native code. */
export const SWEEP_CONNECTIONS_PER_TURN = 1000

/** Loading a handler module. Above: the route reports a problem and its connections end with handler_failed. */
export const HANDLER_LOAD_MS_MAX = 10_000

/** Bytes a handler may have read ahead for it (beyond one event's, 512 KiB at most), and may have written ahead of the network,
 * before it has to wait. */
export const HANDLER_BUFFER_BYTES = 64 * 1024

/** Sockets that the handler of one connection has open at once, or is opening. Above: connect() fails with too_many_sockets. */
export const HANDLER_SOCKETS_MAX = 64

/** How old what is known of the addresses of this machine may be, for what handlers may reach. */
export const OWN_ADDRESSES_MS = 5000

/** One line a second and route about failing handlers and handshakes. Above: counted, and said with the next line. */
export const ROUTE_LOG_INTERVAL_MS = 1000

/** Lines a second about errors that nobody caught in a worker. Above: counted, and said with the next line. */
export const UNCAUGHT_LOG_LINES_MAX = 5
export const UNCAUGHT_LOG_INTERVAL_MS = 1000

/** A carried connection this old gets its keepalive; younger ones are bounded by the deadlines of opening anyway. */
export const KEEP_ALIVE_AFTER_MS = 5000

/** One table of sockets in /proc/net, about 150 bytes a socket: a hundred thousand of them. Above: the rest is not looked at. */
export const SOCKET_TABLE_BYTES_MAX = 16 * 1024 * 1024

/** Looking for the program that has a port. Above: the message says "another program". */
export const OWNER_MS_MAX = 2000

/** Descriptors of one process among which a socket is looked for: what listens was opened early. Above: the rest is not looked at. */
export const OWNER_FILES_MAX = 4096

/** Programs that one message names. Above: they are counted. */
export const OWNERS_NAMED_MAX = 3

/** Names of routes that totals are kept of, also of routes that are gone: many times what one gateway has. Above: the one that came first of
 * those without a connection is forgotten. */
export const ROUTE_TOTALS_MAX = 65_536

/** Targets of one route that totals are kept of, also of those that are gone. Above: as for routes. */
export const TARGET_TOTALS_MAX = 1024

/** Texts that live records share (routes, listeners, targets, server names), about 100 bytes each. Above: all are forgotten. */
export const SHARED_TEXTS_MAX = 4096

/** Names of targets that are kept instead of made again for each flow, about 100 bytes each. Above: all are forgotten. */
export const TARGET_NAMES_MAX = 4096

/** The first pause of a target that was found dead and is not checked: long for a restart of a service, short for a person. */
export const HEALTH_PAUSE_MS_MIN = 10_000

/** Pauses double until here: the one connection that a trial costs comes every five minutes at most. */
export const HEALTH_PAUSE_MS_MAX = 300_000

/** Health checks that run at once; each has a descriptor for its timeout at most. Above: they wait for one that ends. */
export const HEALTH_CHECKS_AT_ONCE_MAX = 256

/** The head of the answer to a check: what nginx and Apache allow for the head of a request. Above: the check has failed. */
export const HEALTH_HEAD_BYTES_MAX = 8 * 1024

/** Words about a failed check, which may quote a library. Above: cut. */
export const HEALTH_ERROR_CHARACTERS_MAX = 200

/** Targets of which a worker says in one message how dialling them went. Above: the rest of those few milliseconds goes unsaid. */
export const DIAL_REPORTS_MAX = 1000

/** Settled flows remembered at a time, twice: some seconds of a machine's worst, 2 MiB. Above: the older half is forgotten, and
 * with it how to tell whether a flow from then has been told, if the kernel drops events now. */
export const RECENT_FLOWS_MAX = 32_768
export const RECENT_FLOWS_MS = 15_000

/** Kernel flows that are ended, or whose peers are reset, before others have their turn: about 50 us each. */
export const FLOW_CUTS_PER_TURN = 128

/** Kernel flows whose entries are read one by one. Above: all of them are listed at once. */
export const FLOW_READS_MAX = 1000

/** How often flows are compared with the kernel's list: for the resolution of deadlines, and in case an event was missed without notice. */
export const RESYNC_MS_MIN = 5000
export const RESYNC_MS_MAX = 60_000

/** The end of the access log that is read back after a crash: 10 s of a machine's worst. Above: what was written before may be
 * written a second time. */
export const WRITTEN_BYTES_MAX = 64 * 1024 * 1024

/** A word to the service manager whose queue is full is said again after this time, this often. Above: it goes unsaid. */
export const NOTIFY_RETRY_MS = 50
export const NOTIFY_TRIES_MAX = 20

/** A worker that is asked whether it lives and says nothing for this long does not. */
export const WORKER_ANSWERS_MS_MAX = 2000

/** Names of routes that are gone. Above: those without a live flow are forgotten. */
export const NAMES_KEPT_MAX = 1000

/** Those who listen to events at once: dashboards and operators. Above: 503. */
export const EVENT_SUBSCRIBERS_MAX = 32

/** Events that wait for one who listens, about a thousand. Above: they are lost to it, and it is told how many. */
export const EVENT_BYTES_QUEUED_MAX = 256 * 1024

/** A sign of life to those who listen: shorter than what lies between takes for silence (30 to 60 s). */
export const EVENT_HEARTBEAT_MS = 15_000

/** Heartbeats that one who listens may have no room for. Above: it is taken for dead. */
export const EVENT_STALLED_BEATS_MAX = 4

/** How often refusals are told and states of routes are looked at, while somebody listens. */
export const EVENT_LOOK_MS = 1000

/** Live connections whose counts are read before others have their turn: about 0.2 us each, and 0.4 us and 42 bytes to tell. */
export const COUNTS_PER_TURN = 1000

/** Counting live connections, and reading the kernel's counters for somebody who asks for rates, takes at most one part in this many
 * of the time. */
export const COUNTING_SHARE = 50

/** Routes that are named of one client. Above: the rest is not named. */
export const CLIENT_ROUTES_MAX = 20

/** Clients in one answer. Above: 400. */
export const CLIENTS_LISTED_MAX = 10_000

/** Routes of which it is kept how fast they carry: those that carried something within the hour, 4 KiB each. Above: the next one is
 * told as unknown until another has rested for an hour. */
export const THROUGHPUT_ROUTES_MAX = 16_384

/** Routes whose totals are compared before others have their turn: about 0.5 us each. */
export const THROUGHPUT_ROUTES_PER_TURN = 2000

/** How far before now the rates of what the kernel carries may end, while its counters are not read. Above: what is not known yet
 * counts as nothing. */
export const RATES_LAG_MS_MAX = 10_000

/** What of a token is looked up: authorities use 43 characters. Longer: the request is no challenge. */
export const CHALLENGE_TOKEN_CHARACTERS_MAX = 256

/** For the answer to a challenge, and again for its client to leave. Above: the connection ends. */
export const CHALLENGE_ANSWER_MS_MAX = 10_000

/** How long a port whose first bytes are read only because of a challenge waits for them: a client that says nothing, because the
 * target speaks first, gets the port's route then. An authority sends its request at once; one lost packet more is within it. */
export const CHALLENGE_FIRST_BYTES_MS_MAX = 1500

/** For a worker to say that it answers the challenges it was told, a restart of it included. Above: they count as not placed. */
export const CHALLENGES_TOLD_MS_MAX = 10_000

/** Ports of one range that get user-space listeners, each a socket. A range with more is carried by the kernel or not at all. */
export const TWIN_PORTS_MAX = 256

/** A certificate with less left than this is told as expiring: whoever renews it (certbot at 30 days) should have done so. */
export const EXPIRING_DAYS = 14

/** How often the times of certificates are looked at, and files whose change went unnoticed. */
export const CERTIFICATE_LOOK_MS = 60_000

/** Certificates that change within this time are told to the workers together. */
export const CERTIFICATE_CHANGES_MS = 50

/** Directories of certificate files that are watched. Above: changes of the others are found by looking. */
export const WATCHED_DIRECTORIES_MAX = 1024

/** From a change in a directory to the look at its files: writers write more than once. */
export const FILE_CHANGE_MS = 200

/** Certificate and key are replaced one after the other: what does not fit is tried again this often for so long. Above: it is
 * reported, and tried again with each change and each look. */
export const FILES_SETTLE_RETRY_MS = 500
export const FILES_SETTLE_MS_MAX = 5000

/** One call of a certificate module. Above: its process is killed, and the call has failed. */
export const PROVIDER_MS_MAX = 30_000

/** What a module may answer: two files of the largest size that is read. Above: its process is killed. */
export const PROVIDER_ANSWER_BYTES_MAX = 1024 * 1024

/** Calls of certificate modules at once; each is a process. Above: they wait for one that ends. */
export const PROVIDERS_AT_ONCE_MAX = 4

/** Who takes over from another gateway waits so long for certificate modules, while that one still serves. */
export const PROVIDERS_AHEAD_MS = 20_000

/** The pause after a failed call of a certificate module; it doubles with each up to the second. */
export const PROVIDER_PAUSE_MS_MIN = 60_000
export const PROVIDER_PAUSE_MS_MAX = 3_600_000

/** A module that gives what it gave before, or leaves a name to ACME, is asked again after this long at most. */
export const PROVIDER_AGAIN_MS_MAX = 12 * 3_600_000

/** Words about what is wrong with a certificate, which may quote a module. Above: cut. */
export const CERTIFICATE_ERROR_CHARACTERS_MAX = 500

/** A key of the store: a host name (253) with the words around it. Above: refused. */
export const STORE_KEY_CHARACTERS_MAX = 512

/** One entry of the store: a chain of four RSA certificates with its key has 12 KiB. Above: it is not kept. */
export const STORE_TEXT_BYTES_MAX = 128 * 1024

/** How often the files of the store are looked at for what other processes changed, while somebody wants to know. */
export const STORE_LOOK_MS = 1000

/** What a shared store is given to answer one command, or to be connected to. Above: the command has failed. */
export const STORE_ANSWER_MS_MAX = 3000

/** A shared store that did not answer is left alone this long: commands fail at once meanwhile. */
export const STORE_PAUSE_MS = 1000

/** A lock in a shared store outlives its holder this long; it is renewed at a third of it. */
export const STORE_LOCK_MS = 30_000

/** How often a shared store is asked what changed, in case a message about it was lost. */
export const STORE_ASK_MS = 10_000

/** Without a message for this long, the connection on which they come is made anew: it may be dead without knowing. */
export const STORE_SILENCE_MS = 60_000

/** Changed keys that a shared store remembers. Above: the oldest are forgotten, and a gateway that was away while as many changed
 * reads them when it needs them. */
export const STORE_CHANGES_MAX = 10_000

/** Keys in one step of a list: a shared store serves nobody else meanwhile (about 0.3 ms). */
export const STORE_PAGE_KEYS = 500

/** A gateway is taken for gone when it has not announced itself for this long; it does so three times in it. */
export const FLEET_PRESENCE_MS = 30_000

/** A challenge that nobody took away, because its gateway crashed, is gone after this time; CAs answer within seconds. */
export const FLEET_CHALLENGE_MS = 600_000

/** How long the other gateways have to answer a challenge before the CA is told to look. Above: it is told anyway, and said. */
export const FLEET_READY_MS = 5000

/** How often the others are looked after in that time. */
export const FLEET_LOOK_MS = 100

/** Challenges answered at a time, about 1 KiB each. Above: the rest is not answered here, and their gateways say so. */
export const FLEET_CHALLENGES_MAX = 1000

/** A body that is sent to the admin API over HTTP: ten thousand routes. Above: 413. */
export const ADMIN_BODY_BYTES_MAX = 8 * 1024 * 1024

/** A login is a token of 256 characters at most. Above: 413. */
export const ADMIN_LOGIN_BYTES_MAX = 4096

/** A client of the admin API over HTTP that sends and takes nothing. Above: its connection is closed. */
export const ADMIN_IDLE_MS_MAX = 20_000

/** The dashboard's login holds for a working day. Above: it asks for the token again. */
export const ADMIN_SESSION_MS_MAX = 12 * 3600_000

/** Wrong tokens from one address in a minute: more than a person mistypes. Above: 429 for the rest of the minute, whatever the token. */
export const ADMIN_FAILURES_MAX = 10
export const ADMIN_FAILURES_MS = 60_000

/** Addresses whose wrong tokens are remembered. Above: the one that came first is forgotten. */
export const ADMIN_FAILURE_CLIENTS_MAX = 1000
/** From starting a new program to its being ready to take over: what a start may take, three times. Above: it is ended, and the old one goes on. */
export const HANDOVER_MS_MAX = 60_000

/** How long the old program may take to write what it counted and to let go of the kernel's rules. Above: the new one ends. */
export const HANDOVER_RELEASE_MS_MAX = 30_000

/** How often a program that has handed over tells what its connections carry. */
export const HANDOVER_SAMPLE_MS = 1000

/** Beyond the grace period: what the programs before this one may take to end. */
export const LEFT_BEHIND_MS_MAX = 2000

/** How long connections in user space may go on in a program that has handed over. Above: they are cut. */
export const HANDOVER_DRAIN_MS_MAX = 3_600_000

/** How long the challenge port is still read after the last challenge: the next name is asked for within this. */
export const CHALLENGE_LINGER_MS = 5000

/** How long a plan waits for the relay thread to close the ports that are given up: a turn of its loop. */
export const LISTENER_CLOSES_MS_MAX = 1000

/** How long a change may wait for its confirmation: a person has to look in between, and must not have forgotten it. */
export const CONFIRM_MS_MIN = 1000
export const CONFIRM_MS_MAX = 3_600_000
/** One that cannot be taken back, since somebody else has a port of before, is tried again after this. */
export const TAKE_BACK_AGAIN_MS = 5_000

/** The routes of a change that a line of the log names; of more it says how many. */
export const CHANGES_LOGGED_MAX = 20
