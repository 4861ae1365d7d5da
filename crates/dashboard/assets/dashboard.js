// Keeps a page as it would be if it were opened again: whatever is drawn is drawn by the server, and this only asks for it anew,
// when an event comes or some time has passed. Without it everything can still be read and done.

const body = document.body
const every = Number(body.dataset.every || 0) * 1000
const source = body.dataset.live
// Many events in a row are one look.
const APART = 1000

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
  const answer = await fetch(url, { headers: { accept: 'text/html' }, cache: 'no-store' })
  if (answer.redirected && new URL(answer.url).pathname === '/dashboard/login') {
    // The session has ended; the login leads back here.
    location.assign(answer.url)
    return null
  }
  if (!answer.ok) throw new Error(`status ${answer.status}`)
  return new DOMParser().parseFromString(await answer.text(), 'text/html')
}

let looking = false
let again = false
let last = 0
let timer

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
    for (const region of document.querySelectorAll('[data-region]')) {
      const wanted = page.getElementById(region.id)
      if (wanted) become(region, wanted)
    }
    if (every) say('live', 'Live')
  } catch {
    say('away', 'Not reachable')
  } finally {
    looking = false
    plan(again ? APART : every)
    again = false
  }
}

function plan(within) {
  clearTimeout(timer)
  if (within && !document.hidden) timer = setTimeout(look, within)
}

function soon() {
  plan(Math.max(0, last + APART - Date.now()) || 1)
}

if (every) {
  say('live', 'Live')
  plan(every)
  document.addEventListener('visibilitychange', () => (document.hidden ? clearTimeout(timer) : soon()))
  if (source) {
    const events = new EventSource(source)
    events.addEventListener('message', soon)
    events.addEventListener('open', () => say('live', 'Live'))
    addEventListener('pagehide', () => events.close())
  }
}

for (const place of document.querySelectorAll('[data-load]')) {
  try {
    const page = await fetched(place.dataset.load)
    const wanted = page?.getElementById(place.id)
    if (wanted) become(place, wanted)
  } catch {
    // Its link leads to the same.
  }
}

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
