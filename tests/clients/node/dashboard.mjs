// Operators at the dashboard in a real browser.
//
// In: BASE, CHROMIUM, SUPPORT and ADMIN (API keys), STEPS (`repair` or `everyone`), SHOTS (folder for pictures, may be missing).
// Out: one line of JSON that names the claims which held; whatever does not hold ends it with the claim's name.
import assert from 'node:assert/strict'
import { readFile } from 'node:fs/promises'
import { createRequire } from 'node:module'
import { chromium } from 'playwright-core'

const { BASE, CHROMIUM, SUPPORT, ADMIN, STEPS, SHOTS } = process.env
const axe = await readFile(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8')
const browser = await chromium.launch({
  executablePath: CHROMIUM,
  args: ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync'],
})
const complaints = []
const held = []

async function claim(name, check) {
  try {
    await check()
    held.push(name)
  } catch (error) {
    throw new Error(`${name}: ${error.stack || error}`)
  }
}

/** A browser of its own; `more` as playwright's contexts take it. */
async function visitor(more = {}) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 860 }, ...more })
  context.setDefaultTimeout(15_000)
  const page = await context.newPage()
  page.on('console', (message) => {
    const expected = /status of (401|403|404|503)|ERR_FAILED/.test(message.text())
    if (message.type() === 'error' && message.location().url.startsWith(BASE) && !expected) complaints.push(message.text())
  })
  page.on('pageerror', (error) => complaints.push(String(error)))
  // Nothing is fetched from anywhere but the service itself, but for the provider's pages that a consent leads to.
  page.on('request', (request) => {
    const from = page.url()
    const ours = from === 'about:blank' || from.startsWith(`${BASE}/dashboard`)
    if (ours && !request.isNavigationRequest() && !request.url().startsWith(BASE)) complaints.push(`fetched ${request.url()}`)
  })
  page.on('dialog', (dialog) => complaints.push(`a dialog: ${dialog.message()}`))
  return page
}

async function logIn(page, key, path = '/dashboard') {
  await page.goto(BASE + path)
  await page.fill('#key', key)
  await page.click('button[type=submit]')
  await page.waitForURL((url) => url.pathname !== '/dashboard/login')
}

const shot = async (page, name) => { if (SHOTS) await page.screenshot({ path: `${SHOTS}/${name}.png`, fullPage: true }) }
const main = (page) => page.innerText('main')

/** What axe finds serious; of `rules` alone where they are named. */
async function findings(page, rules) {
  const { violations } = await page.evaluate(
    (rules) => axe.run({ resultTypes: ['violations'], ...(rules && { runOnly: { type: 'rule', values: rules } }) }),
    rules,
  )
  return violations
    .filter(({ impact }) => impact === 'serious' || impact === 'critical')
    .map(({ id, nodes }) => `${id}: ${nodes.slice(0, 3).map((node) => `${node.html} ${node.failureSummary}`).join(' | ')}`)
}

/** Consents at the provider's page, on a page of its own as the customer would. */
async function consent(link, portal) {
  const page = await visitor()
  await page.goto(link)
  await page.click('main form button')
  await page.waitForLoadState()
  await page.check(`input[name=hub_id][value="${portal}"]`)
  await page.click('button[name=decision][value=grant]')
  await page.waitForURL((url) => !url.pathname.startsWith('/oauth/authorize'))
  const said = await main(page)
  await page.context().close()
  return said
}

async function repair() {
  const page = await visitor()
  await claim('a wrong key is refused in words and a right one leads to the page that was asked for', async () => {
    await page.goto(`${BASE}/dashboard/connections?q=lost`)
    await page.fill('#key', `evg_${'x'.repeat(43)}`)
    await page.click('button[type=submit]')
    assert.match(await main(page), /no such key/)
    await page.fill('#key', SUPPORT)
    await page.click('button[type=submit]')
    await page.waitForURL(`${BASE}/dashboard/connections?q=lost`)
  })
  await claim('the key is nowhere in the page, its address or what scripts can read', async () => {
    assert.ok(!(await page.content()).includes(SUPPORT) && !page.url().includes(SUPPORT))
    assert.equal(await page.evaluate(() => document.cookie), '')
  })
  await claim('a search finds by customer, portal and id, and says when there is nothing', async () => {
    for (const [text, rows] of [['lost', 1], ['1001', 1], ['no such thing', 0]]) {
      await page.fill('#q', text)
      await page.press('#q', 'Enter')
      await page.waitForURL((url) => url.searchParams.get('q') === text)
      assert.equal(await page.locator('tbody tr').count(), rows, text)
    }
    assert.match(await main(page), /Nothing matches/)
  })
  await claim('a list goes on page after page and comes to its end', async () => {
    await page.goto(`${BASE}/dashboard/connections`)
    const seen = new Set()
    for (let pages = 1; ; pages += 1) {
      for (const id of await page.locator('tbody tr .ids code').allInnerTexts()) {
        assert.ok(!seen.has(id), `${id} is there twice`)
        seen.add(id)
      }
      const next = page.getByRole('link', { name: 'Next page' })
      if (await next.count() === 0) {
        assert.ok(pages >= 2, `${pages} pages`)
        break
      }
      await Promise.all([page.waitForURL((url) => url.searchParams.get('cursor') !== null), next.click()])
      await page.waitForLoadState()
    }
    assert.ok(seen.size >= 54, `${seen.size} connections`)
  })
  await claim('a filter by health shows that health alone', async () => {
    await page.goto(`${BASE}/dashboard/connections`)
    await page.getByRole('navigation', { name: 'Health' }).getByRole('link', { name: 'Degraded' }).click()
    await page.waitForURL((url) => url.searchParams.get('health') === 'degraded')
    const chips = await page.locator('tbody .chip').allInnerTexts()
    assert.ok(chips.length > 0 && chips.every((chip) => chip.trim() === 'Degraded'), String(chips))
  })
  await claim('names from elsewhere stay text', async () => {
    await page.goto(`${BASE}/dashboard/connections/hostile`)
    assert.match(await page.innerText('h1'), /<img src=x onerror=/)
    assert.equal(await page.locator('main img, main script').count(), 0)
  })
  await claim('a refresh says which version took whose place, once', async () => {
    await page.goto(`${BASE}/dashboard/connections/calls-well`)
    await page.click('text=Refresh now')
    await page.waitForSelector('.notice')
    assert.match(await page.innerText('.notice'), /version 2 took the place of version 1/)
    assert.match(await page.innerText('#timeline'), /Refreshed/)
    await page.reload()
    assert.equal(await page.locator('.notice').count(), 0)
  })
  await claim('the first page says who needs somebody, and leads to the link that repairs it', async () => {
    await page.goto(`${BASE}/dashboard`)
    const needed = page.locator('#needed li', { hasText: 'lost-its-grant' })
    assert.match(await needed.innerText(), /refused|gone|install/i)
    await needed.getByRole('link').click()
    await page.waitForURL(/connections\/lost-its-grant/)
    assert.match(await page.innerText('#state'), /Reconnect needed/)
  })
  await claim('the customer follows the link, and the page shows that it is repaired without being touched', async () => {
    const link = await page.inputValue('#link')
    assert.match(await page.innerText('#reconnect'), /works until .* UTC/)
    assert.match(await consent(link, 1002), /connected/i)
    await page.waitForFunction(() => /Reconnected/.test(document.querySelector('#timeline').innerText))
    assert.doesNotMatch(await page.innerText('#state'), /Reconnect needed/)
  })
  await claim('what the key may not do is not there', async () => {
    assert.equal(await page.locator('text=Disconnect').count(), 0)
    const page403 = await page.request.get(`${BASE}/dashboard/connections/calls-well/disconnect`)
    assert.equal(page403.status(), 403)
  })
  await claim('who leaves is out', async () => {
    await page.click('text=Log out')
    await page.waitForURL(`${BASE}/dashboard/login`)
    await page.goto(`${BASE}/dashboard/connections`)
    assert.equal(new URL(page.url()).pathname, '/dashboard/login')
  })
  await claim('a page whose connection is gone or whose key is revoked says so by itself', async () => {
    const asAdmin = { headers: { authorization: `Bearer ${ADMIN}` } }
    const made = await page.request.post(`${BASE}/v1/keys`, { ...asAdmin, data: { name: 'leaves soon', role: 'support' } })
    const { id, key } = await made.json()
    const other = await visitor()
    await logIn(other, key, '/dashboard/connections/crowd-47')
    assert.ok((await page.request.delete(`${BASE}/v1/connections/crowd-47?purge=true`, asAdmin)).ok())
    await other.evaluate(() => document.dispatchEvent(new Event('visibilitychange')))
    await other.waitForSelector('main h1:has-text("not found"), main .empty h1')
    await other.goto(`${BASE}/dashboard/connections`)
    assert.ok((await page.request.delete(`${BASE}/v1/keys/${id}`, asAdmin)).ok())
    await other.evaluate(() => document.dispatchEvent(new Event('visibilitychange')))
    await other.waitForURL((url) => url.pathname === '/dashboard/login' && url.searchParams.get('next') === '/dashboard/connections')
    assert.match(await main(other), /no longer logged in/)
    await other.context().close()
  })
  await claim('all are examined at once, and what is wrong comes first', async () => {
    await logIn(page, SUPPORT, '/dashboard/diagnosis')
    assert.match(await main(page), /25 connections examined/)
    const first = await page.locator('.verdicts li').first().innerText()
    assert.doesNotMatch(first, /Healthy/)
    await page.click('text=Log out')
    await page.waitForURL(`${BASE}/dashboard/login`)
  })
  await claim('an admin is asked once more, told what happens, and ends a connection', async () => {
    await logIn(page, ADMIN, '/dashboard/connections/leaves')
    await page.click('text=Disconnect…')
    await page.waitForURL(/disconnect$/)
    assert.match(await main(page), /tokens are erased at once/)
    await page.click('button:has-text("Disconnect")')
    await page.waitForSelector('.notice')
    assert.match(await page.innerText('.notice'), /^\s*Disconnected: its tokens are erased/)
    assert.match(await page.innerText('#state'), /Disconnected/)
    assert.match(await page.innerText('#reconnect'), /new connect session/)
  })
  await claim('an app tells how it stands and its credentials can be checked', async () => {
    await page.goto(`${BASE}/dashboard/apps`)
    await page.click('text=Check credentials')
    await page.waitForSelector('.notice')
    assert.match(await page.innerText('.notice'), /accepts the credentials/)
  })
  await page.context().close()
}

const PAGES = [
  ['overview', '/dashboard'],
  ['connections', '/dashboard/connections'],
  ['nothing-matches', '/dashboard/connections?q=no+such+thing'],
  ['healthy', '/dashboard/connections/calls-well'],
  ['lost', '/dashboard/connections/lost-its-grant'],
  ['degraded', '/dashboard/connections/cannot-refresh'],
  ['hostile', '/dashboard/connections/hostile'],
  ['right-to-left', '/dashboard/connections/right-to-left'],
  ['long', '/dashboard/connections/long'],
  ['disconnected', '/dashboard/connections/was-disconnected'],
  ['disconnect', '/dashboard/connections/leaves/disconnect'],
  ['diagnosis', '/dashboard/diagnosis'],
  ['apps', '/dashboard/apps'],
  ['webhooks', '/dashboard/webhooks'],
  ['missing', '/dashboard/connections/nobody'],
]

const DESK = { width: 1280, height: 860 }
const PHONE = { width: 360, height: 740 }
// What colours and sizes decide; everything else is the same in each of the ways to look at a page.
const BY_LOOK = ['color-contrast', 'link-in-text-block', 'target-size', 'scrollable-region-focusable']

/** Looks at one page in all four ways, and returns what is wrong with it. */
async function looked(page, name) {
  const wrong = []
  await page.evaluate(axe)
  for (const [device, size] of [['desk', DESK], ['phone', PHONE]]) {
    await page.setViewportSize(size)
    for (const colorScheme of ['light', 'dark']) {
      // Colours on their way from one to the other are neither.
      await page.emulateMedia({ colorScheme, reducedMotion: 'reduce' })
      const way = `${name}, ${device}, ${colorScheme}`
      const first = device === 'desk' && colorScheme === 'light'
      wrong.push(...(await findings(page, first ? undefined : BY_LOOK)).map((finding) => `${way}: ${finding}`))
      await shot(page, `${name}-${device}-${colorScheme}`)
    }
    const { wide, small } = await page.evaluate(() => ({
      wide: document.documentElement.scrollWidth - innerWidth,
      small: [...document.querySelectorAll('main button, main .button, nav a')]
        .filter((one) => one.getClientRects().length && one.getBoundingClientRect().height < 36)
        .map((one) => one.outerHTML),
    }))
    if (wide > 0) wrong.push(`${name}, ${device}: ${wide} px too wide`)
    if (device === 'phone') wrong.push(...small.map((one) => `${name}: too small to be touched: ${one}`))
  }
  await page.setViewportSize(DESK)
  await page.emulateMedia({ colorScheme: null })
  return wrong
}

/** As a browser says it of a tab that is behind another. */
const hide = (page, hidden) => page.evaluate((hidden) => {
  Object.defineProperty(document, 'hidden', { configurable: true, get: () => hidden })
  document.dispatchEvent(new Event('visibilitychange'))
}, hidden)

async function everyone() {
  const page = await visitor()
  await claim('no page has a serious finding, is wider than its window or too small to be touched, in light and dark', async () => {
    const wrong = []
    await page.goto(`${BASE}/dashboard/login`)
    wrong.push(...await looked(page, 'login'))
    await logIn(page, ADMIN)
    for (const [name, path] of PAGES) {
      await page.goto(BASE + path)
      await page.waitForFunction(() => !document.querySelector('[data-load]:not([data-loaded])'))
      wrong.push(...await looked(page, name))
    }
    assert.deepEqual(wrong, [])
  })
  await page.context().close()

  const plain = await visitor({ javaScriptEnabled: false })
  await claim('without scripts everything can be read and done', async () => {
    await logIn(plain, SUPPORT)
    for (const [name, path] of PAGES.filter(([name]) => name !== 'disconnect')) {
      await plain.goto(BASE + path)
      assert.ok((await main(plain)).length > 40, name)
    }
    await plain.goto(`${BASE}/dashboard/connections/calls-well`)
    assert.match(await plain.inputValue('#link'), /\/connect\/r\./)
    await plain.click('text=Refresh now')
    assert.match(await plain.innerText('.notice'), /Refreshed|Nothing was redeemed/)
    await plain.click('#diagnosis a.button')
    assert.match(await plain.innerText('#diagnosis'), /\w{4}/)
    await plain.goto(`${BASE}/dashboard/connections`)
    await plain.fill('#q', 'cannot')
    await plain.click('form.filter button')
    assert.equal(await plain.locator('tbody tr').count(), 1)
    await plain.click('text=Log out')
    assert.match(plain.url(), /login$/)
  })
  await plain.context().close()

  const keys = await visitor()
  await claim('the keyboard alone is enough', async () => {
    await keys.goto(`${BASE}/dashboard/login`)
    // A browser gives the focus with the first frame that it draws, which may be later than the page.
    await keys.waitForFunction(() => document.activeElement.id === 'key')
    await keys.keyboard.type(SUPPORT)
    await keys.keyboard.press('Enter')
    await keys.waitForURL(`${BASE}/dashboard`)
    const focused = () => keys.evaluate(() => {
      const one = document.activeElement
      const { outlineStyle, outlineWidth } = getComputedStyle(one)
      return { text: one.innerText || one.value || one.id, seen: outlineStyle !== 'none' && outlineWidth !== '0px', box: one.getBoundingClientRect().toJSON() }
    })
    const tabTo = async (wanted, most = 60) => {
      for (let step = 0; step < most; step += 1) {
        await keys.keyboard.press('Tab')
        const at = await focused()
        assert.ok(at.seen, `the focus cannot be seen on ${at.text}`)
        if (wanted.test(at.text)) return
      }
      assert.fail(`${wanted} was not reached`)
    }
    await tabTo(/^Skip/)
    await tabTo(/^Connections$/)
    await keys.keyboard.press('Enter')
    await keys.waitForURL(`${BASE}/dashboard/connections`)
    await keys.keyboard.press('/')
    await keys.keyboard.type('calls-well')
    await keys.keyboard.press('Enter')
    await keys.waitForURL(/q=calls-well/)
    await tabTo(/^Customer of calls-well/)
    await keys.keyboard.press('Enter')
    await keys.waitForURL(/connections\/calls-well/)
    await tabTo(/^Refresh now/)
    await keys.keyboard.press('Enter')
    await keys.waitForSelector('.notice')
  })
  await keys.context().close()

  const live = await visitor()
  const isLive = (request) => request.url().includes('/dashboard/live')
  await claim('a page that is looked at keeps what somebody is doing there', async () => {
    await logIn(live, SUPPORT, '/dashboard/connections/calls-well')
    await live.waitForSelector('[data-pulse]:not([hidden])')
    await live.focus('#link')
    const looks = live.waitForResponse((answer) => answer.url().endsWith('/connections/calls-well'))
    await live.evaluate(() => document.dispatchEvent(new Event('visibilitychange')))
    await (await looks).finished()
    await live.waitForTimeout(100)
    assert.equal(await live.evaluate(() => document.activeElement.id), 'link')
  })
  await claim('a tab that nobody sees holds no stream, and one that is seen again does', async () => {
    const ended = live.waitForEvent('requestfailed', isLive)
    await hide(live, true)
    await ended
    const begun = live.waitForRequest(isLive)
    await hide(live, false)
    await begun
  })
  await claim('a stream that breaks is asked for again, whatever broke it', async () => {
    for (const broken of [(route) => route.abort(), (route) => route.fulfill({ status: 503, body: '' })]) {
      await hide(live, true)
      const met = new Promise((resolve) => live.route(/dashboard\/live/, async (route) => {
        await broken(route)
        resolve()
      }))
      await hide(live, false)
      await met
      const answer = live.waitForResponse((answer) => isLive(answer.request()) && answer.status() === 200)
      await live.unroute(/dashboard\/live/)
      const answered = await answer
      assert.equal(answered.headers()['content-type'], 'text/event-stream')
    }
  })
  await claim('a service that is away is said to be, and no longer once it is back', async () => {
    const away = /connections\/calls-well$/
    await live.route(away, (route) => route.abort())
    await live.evaluate(() => document.dispatchEvent(new Event('visibilitychange')))
    await live.waitForSelector('[data-pulse][data-state=away]')
    await live.unroute(away)
    await live.evaluate(() => document.dispatchEvent(new Event('visibilitychange')))
    await live.waitForSelector('[data-pulse][data-state=live]')
  })
  await claim('ten tabs of one browser leave it connections to do something with', async () => {
    const tabs = await Promise.all(Array.from({ length: 10 }, () => live.context().newPage()))
    for (const tab of tabs) await tab.goto(`${BASE}/dashboard/connections/calls-well`)
    const statuses = await Promise.all(tabs.map((tab) => tab.evaluate(async () => (await fetch('/dashboard/apps')).status)))
    assert.deepEqual([...new Set(statuses)], [200])
  })
  await live.context().close()
}

try {
  await (STEPS === 'repair' ? repair() : everyone())
  assert.deepEqual(complaints, [])
  console.log(JSON.stringify({ held }))
} finally {
  await browser.close()
}
