// What a run of `bun test` says of itself in its junit file, as counts and reasons.

export interface Results {
  passed: number
  failed: string[]
  skipped: { name: string; reason: string }[]
}

const CASE = /<testcase ([^>]*?)(?:\/>|>([\s\S]*?)<\/testcase>)/g
/** How test/support.ts says why a test is left out. */
const REASON = / \(skipped: (.*)\)$/s

export function parseJunit(xml: string): Results {
  const results: Results = { passed: 0, failed: [], skipped: [] }
  for (const [, attributes, body = ''] of xml.matchAll(CASE)) {
    // The reporter names the innermost group first.
    const groups = attribute(attributes!, 'classname').split(' > ').reverse()
    const name = [...groups, attribute(attributes!, 'name')].filter(Boolean).join(' > ')
    if (/<(?:failure|error)\b/.test(body)) results.failed.push(name)
    else if (body.includes('<skipped')) {
      const reason = body.includes('message="TODO"') ? 'still to be written' : REASON.exec(name)?.[1]
      results.skipped.push({ name: name.replace(REASON, ''), reason: reason ?? 'no reason given' })
    } else results.passed += 1
  }
  return results
}

/** The closing line: other programs read it, so it has one form. */
export function closingLine(results: Results): string {
  const skipped = results.skipped.length > 0 ? `, ${results.skipped.length} skipped` : ''
  return `${results.passed} passed, ${results.failed.length} failed${skipped}`
}

/** The skips, one line for each reason. */
export function skipsByReason(skipped: Results['skipped']): string[] {
  return [...Map.groupBy(skipped, ({ reason }) => reason)].map(
    ([reason, tests]) => `  ${tests.length} × ${reason}: ${tests.map(({ name }) => name).join('; ')}`,
  )
}

const attribute = (attributes: string, name: string) =>
  unescape(new RegExp(`(?:^| )${name}="([^"]*)"`).exec(attributes)?.[1] ?? '')

const entities: Record<string, string> = { lt: '<', gt: '>', quot: '"', apos: "'", amp: '&' }
const unescape = (text: string) =>
  text.replace(/&(?:#(\d+)|(\w+));/g, (all, code, name) =>
    code ? String.fromCodePoint(+code) : (entities[name] ?? all),
  )
