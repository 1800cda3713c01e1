"""Style and script of all pages and drawings. They load no font, image, script or style from elsewhere."""

CSS = """
:root { color-scheme: light dark;
  --ground:#f5f6f8; --sheet:#fff; --ink:#171b21; --soft:#5a6472; --rule:#d8dde4; --imagined:#3157d5; --met:#12775a;
    --missed:#c0311b;
  --s1:#3157d5; --s2:#d0702a; --s3:#12775a; --s4:#8b4bc2; --s5:#b3205f; --s6:#6b7280; }
@media (prefers-color-scheme: dark) { :root {
  --ground:#11141a; --sheet:#191d25; --ink:#e5e9ef; --soft:#98a3b2; --rule:#2b323d; --imagined:#8da6ff;
    --met:#53c7a0; --missed:#ff8069;
  --s1:#8da6ff; --s2:#f0a060; --s3:#53c7a0; --s4:#c69af0; --s5:#f283b0; --s6:#9aa3af; } }
* { box-sizing:border-box; }
html { -webkit-text-size-adjust:100%; }
body { margin:0; background:var(--ground); color:var(--ink);
  font:16px/1.5 "Avenir Next","Segoe UI","Helvetica Neue",Roboto,"Noto Sans",sans-serif;
    font-variant-numeric:tabular-nums; }
main { max-width:1180px; margin:0 auto; padding:56px 32px 96px; }
h1 { font-size:clamp(1.9rem, 4.6vw, 3rem); line-height:1.08; letter-spacing:-.025em; font-weight:650; margin:0;
  max-width:22ch; text-wrap:balance;
  overflow-wrap:anywhere; }
h2.axis { font-size:1.7rem; margin:96px 0 -24px; padding-top:20px; border-top:3px solid var(--ink); }
h2 { font-size:1.2rem; line-height:1.2; letter-spacing:-.01em; font-weight:650; margin:0 0 .5rem; }
h4 { font-size:.88rem; font-weight:500; color:var(--soft); margin:0 0 .5rem; }
h3 { font-size:.95rem; font-weight:600; margin:0 0 .6rem; overflow-wrap:anywhere; }
p { margin:0; overflow-wrap:anywhere; } a { color:var(--imagined); }
.sub { color:var(--soft); font-size:1.05rem; margin-top:.9rem; max-width:62ch; }
.how { color:var(--soft); font-size:.875rem; line-height:1.45; max-width:58ch; }
.heads { display:grid; grid-template-columns:repeat(auto-fit, minmax(190px, 1fr)); gap:28px 32px; margin:40px 0 0;
  padding:0; }
.heads > div { border-top:2px solid var(--ink); padding-top:10px; display:flex; flex-direction:column; }
.heads dt { order:1; font-size:.9rem; line-height:1.3; margin:2px 0 4px; } .heads dd { order:2; margin:0;
  font-size:.85rem; line-height:1.45; color:var(--soft); }
.heads dd.big { order:0; font-size:2.3rem; line-height:1.15; font-weight:600; letter-spacing:-.03em;
  color:var(--ink); white-space:nowrap; }
.heads .big small { font-size:1.1rem; font-weight:500; letter-spacing:0; margin-left:.2em; }
.tally { margin-top:1.6rem; font-weight:550; }
section { border-top:1px solid var(--rule); margin-top:56px; padding-top:24px; display:grid;
  grid-template-columns:230px minmax(0, 1fr); gap:24px 48px; }
.body { display:grid; gap:36px; min-width:0; } .body > * { min-width:0; }
table { border-collapse:collapse; width:100%; font-size:.95rem; }
th { text-align:left; font-weight:500; font-size:.8rem; color:var(--soft); padding:0 16px 8px 0;
  vertical-align:bottom; overflow-wrap:anywhere; min-width:5.6em; }
td { padding:10px 16px 10px 0; border-top:1px solid var(--rule); vertical-align:baseline; }
  tr > :last-child { padding-right:0; }
td.what { min-width:13rem; } td.what small { display:block; color:var(--soft); font-size:.82rem; line-height:1.4; }
td.num { white-space:nowrap; } td.value { font-weight:600; } td.range { color:var(--soft); }
tr.pooled td { border-top:2px solid var(--ink); font-weight:600; }
td.plot { width:34%; min-width:96px; vertical-align:middle; }
.met, .missed, .unshown { font-weight:600; white-space:nowrap; } .unshown { color:var(--soft); }
.met { color:var(--met); } .missed { color:var(--missed); }
.met::before { content:"\\2713\\00a0"; } .missed::before { content:"\\2717\\00a0"; }
svg { display:block; width:100%; height:auto; overflow:visible; }
svg text { font-size:12px; fill:var(--soft); } .grid { stroke:var(--rule); }
polyline { fill:none; stroke-linejoin:round; stroke-linecap:round; } .line { stroke-width:2; }
  .raw { stroke-width:1; opacity:.28; } .band { fill:var(--s1); opacity:.14; }
svg.interval { height:18px; } .interval line { vector-effect:non-scaling-stroke; stroke-linecap:round; }
.axis { stroke:var(--rule); stroke-width:1; } .bar { stroke:var(--imagined); stroke-width:4; opacity:.4; }
.interval .dot { stroke:var(--imagined); stroke-width:10; } .target { stroke:var(--ink); stroke-width:1.5; }
.curves { display:grid; grid-template-columns:repeat(auto-fill, minmax(min(320px, 100%), 1fr)); gap:28px 36px; }
.sweep { display:grid; grid-template-columns:minmax(0, 2fr) minmax(0, 3fr); gap:10px 28px; align-items:center; }
.strip { display:grid; gap:4px; font-size:.8rem; color:var(--soft); text-align:center; }
@media (max-width: 760px) { .sweep { grid-template-columns:minmax(0, 1fr); } }
.key { display:flex; flex-wrap:wrap; gap:2px 14px; font-size:.82rem; color:var(--soft); margin:-.35rem 0 .5rem; }
.key i { display:inline-block; width:14px; height:3px; border-radius:2px; margin-right:6px; vertical-align:middle; }
figure { margin:0; } figcaption { font-size:.82rem; line-height:1.4; color:var(--soft); }
video, img { display:block; width:100%; height:auto; background:var(--rule); } img { image-rendering:pixelated; }
  video { cursor:pointer; }
.pairs { display:grid; grid-template-columns:repeat(auto-fit, minmax(min(340px, 100%), 1fr)); gap:20px 24px; }
.three { display:grid; grid-template-columns:repeat(3, 1fr); column-gap:1%; font-size:.8rem; line-height:1.3;
  margin-bottom:5px; color:var(--soft); }
.three .im { color:var(--imagined); font-weight:600; } .three .re { color:var(--ink); font-weight:600; }
.still { display:grid; gap:10px 8px; align-items:end; }
.clips { display:grid; grid-template-columns:repeat(auto-fill, minmax(140px, 1fr)); gap:22px 16px; }
.clips figcaption { margin-top:6px; overflow-wrap:anywhere; }
pre { margin:0; padding:14px 16px; background:var(--sheet); border:1px solid var(--rule); border-radius:6px;
  overflow-x:auto;
  font:.82rem/1.55 ui-monospace,"SF Mono",Menlo,Consolas,"DejaVu Sans Mono",monospace; }
pre.commands { white-space:pre-wrap; overflow-wrap:anywhere; }
dl.facts { display:grid; grid-template-columns:max-content minmax(0, 1fr); gap:4px 24px; margin:0; font-size:.92rem; }
.facts dt { color:var(--soft); } .facts dd { margin:0; overflow-wrap:anywhere; }
summary { cursor:pointer; font-weight:600; font-size:.95rem; } details pre { margin-top:12px; max-height:70vh;
  overflow:auto; }
:focus-visible { outline:2px solid var(--imagined); outline-offset:3px; }
@media (max-width: 1120px) { section { grid-template-columns:minmax(0, 1fr); gap:18px; } }
@media (max-width: 760px) {
  main { padding:32px 18px 64px; } section { margin-top:44px; }
  .heads { grid-template-columns:1fr 1fr; gap:24px 18px; margin-top:30px; } .heads dd.big { font-size:1.85rem; }
  table, tbody { display:block; } thead { display:none; }
  tr { display:flex; flex-wrap:wrap; gap:2px 16px; padding:12px 0; border-top:1px solid var(--rule); }
  td, tr.pooled td { display:block; padding:0; border:0; } td:empty { display:none; }
    tr.pooled { border-top:2px solid var(--ink); }
  td.what, td.plot { flex:0 0 100%; min-width:0; overflow-wrap:anywhere; } td.plot { padding:6px 0; }
  td.task { flex:1 0 60%; min-width:0; overflow-wrap:anywhere; } td.task + td { font-weight:600; }
  td[data-label]::before { content:attr(data-label) " "; color:var(--soft); font-weight:400; }
  .still .three { font-size:.7rem; letter-spacing:-.01em; }
  .still { grid-template-columns:var(--phone) !important; } .still > figure:nth-child(n+3) { grid-column:2; }
}
@media print { body { background:#fff; } section { break-inside:avoid; } }
"""
"""Style of pages, for light and dark screens, phones and paper."""

# Data addresses become blobs because some phones play no video without byte ranges; clips run only while in view.
SCRIPT = """
const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
const view = new IntersectionObserver(rows => rows.forEach(({target, isIntersecting}) => {
  if (isIntersecting && !calm) target.play().catch(() => {}); else target.pause(); }), {threshold: 0.25});
document.querySelectorAll("video").forEach(video => {
  const bytes = Uint8Array.from(atob(video.src.split(",")[1]), c => c.charCodeAt(0));
  video.src = URL.createObjectURL(new Blob([bytes], {type: "video/mp4"}));
  view.observe(video); });
"""
"""Script of pages with videos."""

FILE_CSS = """
svg { font: 12px system-ui, sans-serif; fill: #3b4350; }
.grid { stroke: #d4d9e0; } .bar { stroke: #3157d5; stroke-width: 3; opacity: .45; } .dot { fill: #3157d5; }
.seed { fill: none; stroke: #3157d5; }
.line { fill: none; stroke: #3157d5; stroke-width: 1.5; } .other { fill: none; stroke: #9aa3af; }
@media (prefers-color-scheme: dark) { svg { fill: #c6cdd8; } .grid { stroke: #39414d; } .dot { fill: #8da6ff; }
  .bar, .line, .seed { stroke: #8da6ff; } }
"""
"""Style of drawings that are files of their own."""
