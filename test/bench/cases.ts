// The list of comparisons: who against whom, under which load. Each name is <what>-<load>.
import { bulk, type Load, short } from './loads.ts'
import { direct, haproxySni, haproxyTcp, nft, sluice, type Subject } from './subjects.ts'

export interface Case {
  name: string
  /** What the ratio answers. */
  question: string
  subject: Subject
  peer: Subject
  load: Load
  /** The client speaks first and says a TLS name. */
  peeking: boolean
  /** Not part of the default set: a look at the measurement itself. */
  extra?: boolean
}

export function cases(program: string[]): Case[] {
  const pairs: Omit<Case, 'load'>[] = [
    {
      name: 'kernel',
      question: 'what do records, limits and maps cost over a bare rule?',
      subject: sluice(program, 'kernel'),
      peer: nft,
      peeking: false,
    },
    {
      name: 'limit',
      question: 'how far is the kernel carrier from no gateway at all?',
      subject: sluice(program, 'kernel'),
      peer: direct,
      peeking: false,
    },
    {
      name: 'scale',
      question: 'does the kernel forward more slowly with ten thousand routes than with those under load alone?',
      subject: sluice(program, 'kernel', 10_000),
      peer: sluice(program, 'kernel'),
      peeking: false,
    },
    {
      name: 'user',
      question: 'does user space keep up with the usual proxy?',
      subject: sluice(program, 'user'),
      peer: haproxyTcp,
      peeking: false,
    },
    {
      name: 'splice',
      question: 'and when the TLS name decides?',
      subject: sluice(program, 'splice'),
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
  return pairs.flatMap((pair) => [bulk, short].map((load) => ({ ...pair, load, name: `${pair.name}-${load.name}` })))
}
