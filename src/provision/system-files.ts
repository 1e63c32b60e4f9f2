// The texts that `make install` puts on a machine beside the program: the unit, the kernel settings, logrotate. Each says what
// it is for where it will be read.

/** What control needs of root, and what for. test/netns/privileges.test.ts runs the gateway with these and no other. */
export const CONTROL_CAPABILITIES = [
  'CAP_NET_ADMIN', // nftables, conntrack, the kernel settings of net
  'CAP_NET_RAW', // the SYN that ends a kernel flow
  'CAP_NET_BIND_SERVICE', // ports below 1024
  'CAP_SETUID', // workers become another user,
  'CAP_SETGID', // with its group,
  'CAP_SETPCAP', // give up their bounding set,
  'CAP_KILL', // and are killed when they hang
]

/** Of the kernel, over a restart of the machine. The gateway sets what it needs by itself, and puts it back when it stops. */
export const SETTINGS: { name: string; value: string; why: string }[] = [
  { name: 'net.ipv4.ip_forward', value: '1', why: 'the kernel forwards IPv4 packets to the targets' },
  { name: 'net.ipv6.conf.all.forwarding', value: '1', why: 'the kernel forwards IPv6 packets to the targets' },
]

export const sysctlText = () => `# Written by "make install" of sluice; "make uninstall" takes it away.
# The gateway sets these by itself when the first route goes to the kernel, and puts them back when it stops. Here they hold from
# boot on, also while it is stopped: kernel flows that it left behind (kernel.onStop 'keep') are forwarded on.
${SETTINGS.map(({ name, value, why }) => `\n# ${why}\n${name} = ${value}`).join('\n')}

# With IPv6 forwarding a machine no longer takes its address or default route from router advertisements. If yours does:
#net.ipv6.conf.all.accept_ra = 2

# When this table is full, new connections of the whole machine are dropped; "sluice doctor" compares. About 320 bytes each.
#net.netfilter.nf_conntrack_max = 262144
`

export const logrotateText =
  () => `# The access log, where log.access names a file here. SIGHUP also reads the configuration again: one that is refused
# leaves the running one as it is.
/var/log/sluice/*.log /var/log/sluice/*.jsonl {
	daily
	rotate 14
	maxsize 1G
	missingok
	notifempty
	compress
	delaycompress
	sharedscripts
	postrotate
		if [ -d /run/systemd/system ]; then
			systemctl kill --kill-who=main --signal=HUP sluice.service 2>/dev/null || true
		fi
	endscript
}
`

/** @param program its absolute path. @param config the configuration's. */
export const unitText = (
  program: string,
  config: string,
) => `# Changes go into a file beside this one: systemctl edit sluice
[Unit]
Description=sluice, an edge proxy: user space decides, the kernel carries
Documentation=man:sluice(8)
# Routes may name local addresses; other firewalls load their rules first, so that what stands in the way is seen at the start.
Wants=network-online.target
After=network-online.target nss-lookup.target nftables.service
# What a start needs may come late (an address, a store, a file): it is tried again and again, not five times and never more.
StartLimitIntervalSec=0

[Service]
Type=notify
# So that it can ask whether a stop is half of a restart.
Environment=SLUICE_UNIT=%n
NotifyAccess=main
ExecStart=${program} run --config ${config}
# So that "systemctl reload" fails, and says why, where the configuration would be refused.
ExecReload=${program} run --config ${config} --check
ExecReload=/bin/kill -HUP $MAINPID
# It hears from control, four times as often, as long as control and the worker answer.
WatchdogSec=30
Restart=on-failure
RestartSec=1
TimeoutStartSec=120
# At least timeouts.grace of the configuration.
TimeoutStopSec=300
# Control stops its workers itself, when their connections have finished.
KillMode=mixed
# When the kernel kills a worker for its memory, control starts the next one: no reason to stop all, and with it what the kernel carries.
OOMPolicy=continue
# Listening sockets outlive a restart here.
FileDescriptorStoreMax=4096
LimitNOFILE=1048576

RuntimeDirectory=sluice
RuntimeDirectoryMode=0755
RuntimeDirectoryPreserve=restart
# Keys and counts: root only, not even the workers.
StateDirectory=sluice
StateDirectoryMode=0700
LogsDirectory=sluice
LogsDirectoryMode=0750
UMask=0027

# Control is root with these and nothing else. Workers become the user "sluice", have none, and refuse themselves the system
# calls that they do not need. Root without CAP_DAC_OVERRIDE reads what root may: keys of TLS have to be root's, or readable.
CapabilityBoundingSet=${CONTROL_CAPABILITIES.join(' ')}
# Changing to a user with fewer rights needs no new privileges.
NoNewPrivileges=yes

# Files that the gateway writes anywhere but in the three directories above (log.access, stateDir, admin.socket) need a
# ReadWritePaths= of yours.
ProtectSystem=strict
# Certificates and handlers may be kept there.
ProtectHome=read-only
PrivateTmp=yes
PrivateDevices=yes
DevicePolicy=closed
PrivateIPC=yes
PrivateMounts=yes
ProtectProc=invisible
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
# The kernel loads the modules of nftables by itself.
ProtectKernelModules=yes
# Not ProtectKernelTunables: net.ipv4.ip_forward and four more are set when a route goes to the kernel, and put back.
KeyringMode=private
LockPersonality=yes
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
# nft and conntrack are spoken to over netlink.
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
SystemCallArchitectures=native
# The second: workers refuse themselves more.
SystemCallFilter=@system-service
SystemCallFilter=seccomp
SystemCallFilter=~@keyring userfaultfd
SystemCallErrorNumber=EPERM
# Not MemoryDenyWriteExecute: JavaScript is compiled while it runs (JIT).

[Install]
WantedBy=multi-user.target
`
