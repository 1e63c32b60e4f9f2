// Files that the bundler embeds: importing one gives its path.
declare module '*.so' {
  const path: string
  export default path
}

// The nft program is text to us.
declare module '*.nft' {
  const text: string
  export default text
}
