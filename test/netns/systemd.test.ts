// The installed service under a real systemd, in its sandbox: what the stand-in of service-manager.test.ts cannot show.
import { expect } from 'bun:test'
import { CONTROL_CAPABILITIES } from '../../src/provision/system-files.ts'
import { slowness, testIf } from '../support.ts'
import { BUN, CHECKOUT, onMachine, whyNoSystemd } from './systemd.ts'

const reason = whyNoSystemd()

/** Until the command says what it should. */
const WAIT = `wait_for() { for i in $(seq ${200 * slowness}); do "$@" 2> /dev/null && return; sleep 0.05; done; echo "not in time: $*"; return 1; }
prop() { systemctl show sluice --property "$1" --value; }
is() { [ "$(prop "$1")" = "$2" ]; }
routes_are() { [ "$(sluice routes --json | grep -c '"state": *"active"')" = "$1" ]; }`

const config = (routes: string) => `cat > /etc/sluice/sluice.config.ts <<'CONFIG'
import { defineConfig } from 'sluice'
export default defineConfig({ log: { access: '/var/log/sluice/access.jsonl' }, routes: [${routes}] })
CONFIG`
const KERNEL = `{ name: 'kernel', match: { ports: 81 }, action: { type: 'forward', targets: [{ host: '10.7.7.7', port: 80 }] } },`
const TLS = `{ name: 'tls', match: { ports: 443 }, action: { type: 'redirect', to: 'http://{host}/', }, },`

testIf(reason === null, reason ?? '')(
  'E9 E10 G17: under systemd, in its sandbox: installed, started, reloaded, restarted, upgraded, watched, stopped, gone',
  async () => {
    const said = await onMachine(`${WAIT}
ip link set lo up
# Compiling takes long: the source behind a script.
printf '#!/bin/sh\\nexec ${BUN} ${CHECKOUT}/src/main.ts "$@"\\n' > /root/program && chmod 755 /root/program
cd ${CHECKOUT}
install() { ${BUN} src/provision/$1-system.ts /root/program 2>&1; }
echo == install
install install | tail -1
${config(KERNEL)}
# A watchdog that a test can wait for.
mkdir -p /etc/systemd/system/sluice.service.d
printf '[Service]\\nWatchdogSec=${2 * slowness}\\n' > /etc/systemd/system/sluice.service.d/test.conf
systemctl daemon-reload
systemctl enable --now sluice
echo == started
prop ActiveState
wait_for routes_are 1
sluice routes --json | grep -E '"(carrier|state)"' | tr -d ' ,'
echo == capabilities
grep -E '^CapEff' /proc/$(prop MainPID)/status | cut -f2
echo == worker
worker=$(pgrep -P $(prop MainPID) -u sluice)
grep -cE '^CapEff:.0+$' /proc/$worker/status
echo == forwarding
cat /proc/sys/net/ipv4/ip_forward
echo == reloaded
${config(KERNEL + TLS)}
systemctl reload sluice
wait_for routes_are 2
is ActiveState active
prop StatusText
curl -sS -o /dev/null -w '%{http_code}\\n' http://127.0.0.1:443/
echo == modes
stat -c '%a %n' /var/lib/sluice /run/sluice /var/log/sluice
# One after another, as fast as they go: each is answered.
echo == restarted
(until [ -e /tmp/over ]; do curl -sS -m 5 -o /dev/null -w '%{http_code}\n' http://127.0.0.1:443/ 2>&1; done > /tmp/answers) &
wait_for test -s /tmp/answers
before=$(prop MainPID)
systemctl restart sluice
wait_for routes_are 2
[ "$before" != "$(prop MainPID)" ] && echo another
touch /tmp/over; wait
sort -u /tmp/answers
echo == upgraded
before=$(prop MainPID)
sluice upgrade > /dev/null
wait_for is ActiveState active
wait_for routes_are 2
[ "$before" != "$(prop MainPID)" ] && echo another
# Of its own children only it hears the end, and waits for it at a stop.
grep ^PPid /proc/$(prop MainPID)/status | cut -f2
prop NRestarts
# The one that took over.
echo == hangs
before=$(prop MainPID)
kill -STOP $before
wait_for is NRestarts 1
wait_for is ActiveState active
wait_for routes_are 2
[ "$before" != "$(prop MainPID)" ] && echo another
echo == stopped
systemctl stop sluice
prop ActiveState
prop Result
nft list tables
echo == uninstall
install uninstall | grep -E '^(Kept|  |sluice)'
echo == end
`)
    expect(said).toMatchObject({
      install: expect.stringContaining('systemctl enable --now sluice'),
      started: 'active\n"carrier":"kernel"\n"state":"active"',
      worker: '1',
      forwarding: '1',
      reloaded: 'routes: 2, connections: 0\n308',
      modes: '700 /var/lib/sluice\n755 /run/sluice\n750 /var/log/sluice',
      restarted: 'another\n308',
      upgraded: 'another\n1\n0',
      hangs: 'another',
      stopped: 'inactive\nsuccess',
      uninstall: expect.stringContaining('/etc/sluice/sluice.config.ts'),
    })
    const bits = BigInt(`0x${said.capabilities}`).toString(2).replaceAll('0', '').length
    expect(bits).toBe(CONTROL_CAPABILITIES.length)
  },
  60_000,
)
