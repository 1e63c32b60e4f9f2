// What `make test-vm` hands to the kernel it boots: an archive that other programs read too, and the right package.
import { expect, test } from 'bun:test'
import { cpio } from '../../src/provision/vm-archive.ts'
import { kernelPackage } from '../../src/provision/vm-kernel.ts'

const entries = [
  { path: 'bin' },
  { path: 'bin/tool', content: '#!/bin/sh\n', executable: true },
  { path: 'a', content: 'x' },
  { path: 'abcd', content: new Uint8Array([0, 1, 2, 3, 4]) },
  { path: 'empty', content: '' },
]

/** The members of a newc archive, read from its own header fields. */
function members(archive: Buffer) {
  const found: { name: string; mode: string; content: string }[] = []
  for (let at = 0; ;) {
    expect(archive.toString('latin1', at, at + 6)).toBe('070701')
    const field = (index: number) =>
      Number.parseInt(archive.toString('latin1', at + 6 + index * 8, at + 14 + index * 8), 16)
    const [mode, size, nameSize] = [field(1), field(6), field(11)]
    const name = archive.toString('latin1', at + 110, at + 110 + nameSize - 1)
    const from = (at + 110 + nameSize + 3) & ~3
    found.push({ name, mode: mode.toString(8), content: archive.toString('latin1', from, from + size) })
    at = (from + size + 3) & ~3
    if (name === 'TRAILER!!!') {
      expect(at).toBe(archive.length)
      return found
    }
  }
}

test('the archive holds every entry with its kind, mode and bytes, and ends where its end is', () => {
  expect(members(cpio(entries))).toEqual([
    { name: 'bin', mode: '40755', content: '' },
    { name: 'bin/tool', mode: '100755', content: '#!/bin/sh\n' },
    { name: 'a', mode: '100644', content: 'x' },
    { name: 'abcd', mode: '100644', content: '\0\x01\x02\x03\x04' },
    { name: 'empty', mode: '100644', content: '' },
    { name: 'TRAILER!!!', mode: '0', content: '' },
  ])
})

test('files of one archive have inodes of their own: the kernel would take equal ones for links', () => {
  const archive = cpio(entries).toString('latin1')
  const inodes = [...archive.matchAll(/070701([0-9a-f]{8})/g)].map(([, inode]) => inode)
  expect(new Set(inodes).size).toBe(entries.length + 1)
})

test('the kernel package is the one the meta package depends on', () => {
  const show = `Package: linux-image-amd64
Source: linux-signed-amd64 (6.1.192+2)
Depends: linux-image-6.1.0-56-amd64 (= 6.1.192-2)
`
  expect(kernelPackage(show)).toEqual({ name: 'linux-image-6.1.0-56-amd64', version: '6.1.192-2' })
  expect(kernelPackage('Package: linux-image-amd64\nDepends: something (= 1)\n')).toBeUndefined()
  expect(kernelPackage('')).toBeUndefined()
})
