// The list of comparisons: who against whom, under which load. Each name is <what>-<load>, and the peer where there are two.
import { idle } from './idle.ts'
import { bulk, download, echoBulk, echoShort, full, type Load, many, resumed, short, upload } from './loads.ts'
import { bareEcho, direct, haproxySni, haproxyTcp, haproxyTls, nft, nginxTls } from './peers.ts'
import { handler, kernel, sluice, splice, terminate, user } from './sluice.ts'
import type { Subject } from './subjects.ts'

export interface Case {
  name: string
  /** What the ratio answers. */
  question: string
  subject: Subject
  peer: Subject
  load: Load
  /** The client speaks first and says a TLS name. */
  peeking: boolean
  /** What the ratios of metrics should be at least, or at most where lower is better. */
  targets?: Record<string, number>
  /** Not part of the default set: a look at the measurement itself. */
  extra?: boolean
  /** Fewer where figures differ less from run to run, or are asked for less: a default run should end. */
  runsMax?: number
}

export function cases(program: string[]): Case[] {
  const all = [...forwarding(program), ...ending(program), ...echoing(program), ...idling(program)]
  return all.map((one) => ({ ...one, targets: targetsOf(one) }))
}

const TARGETS: Record<string, Record<string, number>> = {
  'splice-bulk': { 'Gbit/s': 1.7, 'CPU ms/GB': 0.65 },
  'splice-short': { 'connections/s': 1, 'first byte p99 us': 1 },
  'tls-full': { 'handshakes/s': 1.2 },
  'tls-full-nginx': { 'handshakes/s': 1 },
  'tls-resumed': { 'handshakes/s': 1 },
  'tls-download': { 'Gbit/s': 1, 'CPU ms/GB': 0.8 },
  'tls-upload': { 'Gbit/s': 1, 'CPU ms/GB': 0.8 },
  'echo-bulk': { 'Gbit/s': 0.95 },
  'echo-short': { 'messages/s': 0.95 },
  'idle-kernel': { 'resident bytes/connection': 1 },
  'idle-splice': { 'resident bytes/connection': 1 },
  'idle-user': { 'resident bytes/connection': 1 },
}

/** Those of the case itself, else those that hold whoever the peer is. */
const targetsOf = ({ name }: Case) => TARGETS[name] ?? TARGETS[name.replace('-nginx', '')]

/** What forwards without ending TLS. */
function forwarding(program: string[]): Case[] {
  const pairs: Omit<Case, 'load'>[] = [
    {
      name: 'kernel',
      question: 'what do records, limits and maps cost over a bare rule?',
      subject: sluice(program, kernel),
      peer: nft,
      peeking: false,
    },
    {
      name: 'limit',
      question: 'how far is the kernel carrier from no gateway at all?',
      subject: sluice(program, kernel),
      peer: direct,
      peeking: false,
      runsMax: 3,
    },
    {
      name: 'scale',
      question: 'does the kernel forward more slowly with ten thousand routes than with those under load alone?',
      subject: sluice(program, kernel, 10_000),
      peer: sluice(program, kernel),
      peeking: false,
      runsMax: 3,
    },
    {
      name: 'user',
      question: 'does user space keep up with the usual proxy?',
      subject: sluice(program, user),
      peer: haproxyTcp,
      peeking: false,
    },
    {
      name: 'splice',
      question: 'and when the TLS name decides?',
      subject: sluice(program, splice),
      peer: haproxySni,
      peeking: true,
    },
    {
      name: 'same',
      question: 'how much does the same thing differ from itself here?',
      subject: nft,
      peer: nft,
      peeking: false,
      extra: true,
    },
    {
      name: 'rule',
      question: 'what does a bare rule cost over none?',
      subject: nft,
      peer: direct,
      peeking: false,
      extra: true,
    },
    {
      name: 'proxy',
      question: 'what does the usual proxy cost over a bare rule?',
      subject: haproxyTcp,
      peer: nft,
      peeking: false,
      extra: true,
    },
    {
      name: 'sni',
      question: 'what does looking at the TLS name cost the usual proxy?',
      subject: haproxySni,
      peer: haproxyTcp,
      peeking: true,
      extra: true,
    },
  ]
  const both = pairs.flatMap((pair) =>
    [bulk, short].map((load) => ({ ...pair, load, name: `${pair.name}-${load.name}` })),
  )
  const spliceMany: Case = {
    name: 'splice-many',
    question: 'and with two thousand flows at once, more than an unprivileged user has large pipes?',
    subject: sluice(program, splice),
    peer: haproxySni,
    load: many,
    peeking: true,
  }
  return [...both, spliceMany]
}

/** TLS ends at the gateway: the same certificate, cipher and group, one thread. */
function ending(program: string[]): Case[] {
  const questions: [Load, string][] = [
    [full, 'how many handshakes from nothing'],
    [resumed, 'how many handshakes by ticket'],
    [download, 'how fast does it encrypt'],
    [upload, 'how fast does it decrypt'],
  ]
  const peers = { '': haproxyTls, '-nginx': nginxTls }
  return Object.entries(peers).flatMap(([suffix, peer]) =>
    questions.map(([load, question]) => ({
      name: `tls-${load.name}${suffix}`,
      question: `${question}, beside ${peer.name}?`,
      subject: sluice(program, terminate),
      peer,
      load,
      peeking: false,
    })),
  )
}

/** The program that answers is the gateway's own. */
const echoing = (program: string[]): Case[] =>
  [echoBulk, echoShort].map((load) => ({
    name: `echo-${load.name}`,
    question: "what do a handler's streams cost over Bun's sockets?",
    subject: sluice(program, handler),
    peer: bareEcho,
    load,
    peeking: false,
  }))

const idling = (program: string[]): Case[] =>
  [
    { kind: kernel, peer: haproxyTcp },
    { kind: splice, peer: haproxySni },
    { kind: user, peer: haproxyTcp },
  ].map(({ kind, peer }) => ({
    name: `idle-${kind.name}`,
    question: 'what memory do ten thousand idle connections hold?',
    subject: sluice(program, kind),
    peer,
    load: idle,
    peeking: peer === haproxySni,
    runsMax: 3,
  }))
