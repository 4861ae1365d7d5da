// Keeps a page as it would be if it were opened again: whatever is drawn is drawn by the server, and this only asks for it anew,
// when an event comes or some time has passed. Without it everything can still be read and done.

const body = document.body
const every = Number(body.dataset.every || 0) * 1000
const source = body.dataset.live
// Many events in a row are one look, and no page takes more than a tenth of the time that it costs the service.
const APART_MIN = 1000
let apart = APART_MIN

/** Makes `to` of `from` without losing the focus, an opened detail or what somebody is typing. */
function become(from, to) {
  if (from.nodeType !== to.nodeType || from.nodeName !== to.nodeName) {
    from.replaceWith(to)
    return
  }
  if (from.nodeType !== Node.ELEMENT_NODE) {
    if (from.nodeValue !== to.nodeValue) from.nodeValue = to.nodeValue
    return
  }
  for (const { name } of [...from.attributes]) {
    if (!to.hasAttribute(name) && !(from.nodeName === 'DETAILS' && name === 'open')) from.removeAttribute(name)
  }
  for (const { name, value } of to.attributes) {
    const kept = from.nodeName === 'DETAILS' && name === 'open'
    if (!kept && from.getAttribute(name) !== value) from.setAttribute(name, value)
  }
  const kept = new Map()
  for (const child of from.children) if (child.id) kept.set(child.id, child)
  let at = from.firstChild
  for (const wanted of [...to.childNodes]) {
    const known = wanted.id && kept.get(wanted.id)
    if (known && known !== at) from.insertBefore(known, at)
    const here = known || at
    if (!here) {
      from.append(wanted)
      continue
    }
    const next = here.nextSibling
    // One that is kept for later must not be turned into another.
    if (!known && here.id && to.querySelector(`#${CSS.escape(here.id)}`)) {
      from.insertBefore(wanted, here)
      continue
    }
    become(here, wanted)
    at = next
  }
  while (at) {
    const next = at.nextSibling
    at.remove()
    at = next
  }
}

const pulse = document.querySelector('[data-pulse]')
function say(state, word) {
  if (!pulse) return
  pulse.hidden = false
  pulse.dataset.state = state
  const words = pulse.querySelector('[data-pulse-word]')
  if (words.textContent !== word) words.textContent = word
}

async function fetched(url) {
  const answer = await fetch(url, { headers: { accept: 'text/html' }, cache: 'no-store', signal: AbortSignal.timeout(20_000) })
  if (answer.redirected && new URL(answer.url).pathname === '/dashboard/login') {
    // The session has ended; the login leads back here.
    location.assign(answer.url)
    return null
  }
  if (!answer.ok) throw answer
  return new DOMParser().parseFromString(await answer.text(), 'text/html')
}

let looking = false
let again = false
let last = 0
let timer

const standing = () => document.querySelector('#state .chip')?.textContent

async function look() {
  if (looking) {
    again = true
    return
  }
  looking = true
  last = Date.now()
  try {
    const page = await fetched(location.href)
    if (!page) return
    const before = standing()
    for (const region of document.querySelectorAll('[data-region]')) {
      const wanted = page.getElementById(region.id)
      if (wanted) become(region, wanted)
    }
    // What was found before is not what would be found now.
    if (standing() !== before) load()
    apart = Math.max(APART_MIN, 9 * (Date.now() - last))
    if (every) say('live', 'Live')
  } catch (why) {
    if (why.status === 404 || why.status === 403) {
      // It is gone, or no longer for this key: the page itself says which.
      location.reload()
      return
    }
    say('away', why.status >= 500 ? 'In trouble' : 'Not reachable')
  } finally {
    looking = false
    plan(again ? apart : every && Math.max(every, apart))
    again = false
  }
}

function plan(within) {
  clearTimeout(timer)
  if (within && !document.hidden) timer = setTimeout(look, within)
}

function soon() {
  plan(Math.max(0, last + apart - Date.now()) || 1)
}

// A browser has six connections to a host where it speaks HTTP/1.1, and a stream holds one. So one tab listens at a time, the one
// that was looked at last; the others look every few seconds while they can be seen, and not at all while they cannot.
const tabs = source && 'BroadcastChannel' in window ? new BroadcastChannel('evergrant-live') : null
const RETRY_MIN = 2000
const RETRY_MAX = 60_000
let events
let retry = RETRY_MIN
let retrying

function hush() {
  clearTimeout(retrying)
  events?.close()
  events = undefined
}

function listen() {
  if (!source || events || document.hidden) return
  clearTimeout(retrying)
  tabs?.postMessage('mine')
  events = new EventSource(source)
  events.addEventListener('message', soon)
  events.addEventListener('open', () => {
    retry = RETRY_MIN
    // What came while nobody listened.
    soon()
  })
  events.addEventListener('error', () => {
    // A browser gives up on some errors and not on others, each on its own. What broke it, the page is told by a look.
    hush()
    soon()
    retrying = setTimeout(listen, retry)
    retry = Math.min(retry * 2, RETRY_MAX)
  })
}

if (every) {
  say('live', 'Live')
  plan(every)
  listen()
  tabs?.addEventListener('message', hush)
  addEventListener('focus', listen)
  addEventListener('pagehide', hush)
  addEventListener('pageshow', listen)
  document.addEventListener('visibilitychange', () => {
    if (document.hidden) {
      clearTimeout(timer)
      hush()
    } else {
      soon()
      listen()
    }
  })
}

async function load(places = document.querySelectorAll('[data-load]')) {
  for (const place of places) {
    try {
      const page = await fetched(place.dataset.load)
      const wanted = page?.getElementById(place.id)
      if (wanted) become(place, wanted)
    } catch {
      // Its link leads to the same.
    }
  }
}

load(document.querySelectorAll('[data-load]:not([data-loaded])'))

for (const button of document.querySelectorAll('[data-copy]')) {
  button.hidden = false
  const named = button.textContent
  button.addEventListener('click', async () => {
    const field = document.getElementById(button.dataset.copy)
    field.select()
    try {
      await navigator.clipboard.writeText(field.value)
    } catch {
      document.execCommand('copy')
    }
    button.textContent = 'Copied'
    setTimeout(() => { button.textContent = named }, 2000)
  })
}

// `/` leads to the search, as in many tools.
addEventListener('keydown', (event) => {
  const field = document.querySelector('[data-shortcut="/"]')
  const typing = event.target instanceof Element && event.target.matches('input, textarea, select')
  if (event.key === '/' && field && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) {
    event.preventDefault()
    field.focus()
  }
})
