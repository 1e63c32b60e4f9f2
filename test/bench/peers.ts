// The gateways that sluice is compared with. Each has one thread, writes no log, and is another user than root where the
// machine has one, as it would be in production: an unprivileged user has fewer large pipes.
import { join } from 'node:path'
import type { Lab } from '../netns/lab.ts'
import { certificate } from './certificate.ts'
import { ECHO_PORT, PORTS, TLS_NAME } from './loads.ts'
import { descriptorsMax, hasOtherUsers } from './machine.ts'
import { gatewayEntry, inKernel, listens, running, type Subject, until } from './subjects.ts'

/** Connections that are just ending count, too. */
const CONNECTIONS_MIN = 4000
const CONNECTIONS_EXTRA = 50
/** Listeners, the event loop, and what else a program has open. */
const DESCRIPTORS_EXTRA = 200

/** No gateway at all: what the two veth pairs and the traffic programs can do. */
export const direct: Subject = {
  name: 'direct routing',
  entry: (lab) => lab.backend.address4,
  async start(lab) {
    lab.gateway.forward()
    return inKernel
  },
}

/** What a network engineer would write by hand for one port. */
export const nft: Subject = {
  name: 'nft by hand',
  entry: gatewayEntry,
  async start(lab) {
    lab.gateway.forward()
    await lab.gateway.nft(`table ip bench {
      chain pre {
        type nat hook prerouting priority dstnat
        ip daddr ${lab.gateway.clientSide4} tcp dport { ${PORTS.join(', ')} } dnat to ${lab.backend.address4}
      }
      chain post {
        type nat hook postrouting priority srcnat
        ip daddr ${lab.backend.address4} masquerade
      }
    }`)
    return inKernel
  },
}

interface Frontend {
  /** Behind the address of `bind`. */
  bind?(chain: string): string
  /** BACKEND stands for where the port leads to. */
  rules: string
}

/** HAProxy in mode tcp. It splices whatever is not encrypted. */
function haproxy(name: string, { bind, rules }: Frontend): Subject {
  return {
    name,
    entry: gatewayEntry,
    async start(lab, directory, connections) {
      const config = join(directory, 'haproxy.cfg')
      // It refuses to start where it could not have as many files open: two for each connection, two for each pipe.
      const maxconn = Math.max(CONNECTIONS_MIN, connections + CONNECTIONS_EXTRA)
      const maxpipes = Math.min(maxconn, Math.floor((descriptorsMax() - DESCRIPTORS_EXTRA) / 2) - maxconn)
      const options = bind ? bind((await certificate(lab, directory)).both) : ''
      const proxies = PORTS.map(
        (port) => `
frontend in-${port}
  bind ${lab.gateway.clientSide4}:${port} ${options}
  ${rules.replaceAll('BACKEND', `out-${port}`)}
backend out-${port}
  server target ${lab.backend.address4}:${port}`,
      )
      await Bun.write(
        config,
        `global
  nbthread 1
  maxconn ${maxconn}
  maxpipes ${maxpipes}
  ${hasOtherUsers() ? 'user nobody\n  group nogroup' : ''}
defaults
  mode tcp
  option splice-auto
  maxconn ${maxconn}
  backlog 8192
  timeout connect 10s
  timeout client 60s
  timeout server 60s
${proxies.join('\n')}\n`,
      )
      const child = lab.gateway.spawn(['haproxy', '-q', '-db', '-f', config], { stdout: 'ignore' })
      await until(`${name} listens`, child, async () => PORTS.every((port) => listens(lab.gateway, port)))
      return running(child)
    },
  }
}

export const haproxyTcp = haproxy('HAProxy tcp, splice-auto', { rules: 'default_backend BACKEND' })

export const haproxySni = haproxy('HAProxy sni, splice-auto', {
  rules: `tcp-request inspect-delay 5s
  tcp-request content accept if { req.ssl_hello_type 1 }
  use_backend BACKEND if { req.ssl_sni -i ${TLS_NAME} }`,
})

export const haproxyTls = haproxy('HAProxy tls', {
  bind: (chain) => `ssl crt ${chain} ssl-min-ver TLSv1.3`,
  rules: 'default_backend BACKEND',
})

/** nginx's stream module with one worker, which ends TLS. */
export const nginxTls: Subject = {
  name: 'nginx tls',
  entry: gatewayEntry,
  async start(lab, directory, connections) {
    const { chain, key } = await certificate(lab, directory)
    const config = join(directory, 'nginx.conf')
    const servers = PORTS.map(
      (port) => `
  server {
    listen ${lab.gateway.clientSide4}:${port} ssl backlog=8192;
    proxy_pass ${lab.backend.address4}:${port};
  }`,
    )
    await Bun.write(
      config,
      `load_module /usr/lib/nginx/modules/ngx_stream_module.so;
daemon off;
worker_processes 1;
user ${hasOtherUsers() ? 'nobody nogroup' : 'root root'};
pid ${directory}/nginx.pid;
error_log stderr crit;
events { worker_connections ${2 * (connections + CONNECTIONS_MIN)}; }
stream {
  access_log off;
  ssl_certificate ${chain};
  ssl_certificate_key ${key};
  ssl_protocols TLSv1.3;
  proxy_connect_timeout 10s;
${servers.join('\n')}
}\n`,
    )
    const child = lab.gateway.spawn(['nginx', '-e', 'stderr', '-c', config], { stdout: 'ignore' })
    await until('nginx listens', child, async () => PORTS.every((port) => listens(lab.gateway, port)))
    return running(child)
  },
}

/** What a handler stands on: Bun's own sockets, run by the same Bun. */
export const bareEcho: Subject = {
  name: 'Bun.listen echo',
  entry: gatewayEntry,
  async start(lab: Lab) {
    const program = [process.execPath, join(import.meta.dir, 'bare-echo.ts')]
    const child = lab.gateway.spawn([...program, lab.gateway.clientSide4, String(ECHO_PORT)], { stdout: 'ignore' })
    await until('the echo listens', child, async () => listens(lab.gateway, ECHO_PORT))
    return running(child)
  },
}
