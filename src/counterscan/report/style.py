"""The page's style sheet: one column of text, pictures on black, colours that follow the light or dark setting."""

from __future__ import annotations

CSS = """
:root{--paper:#fbfbfa;--card:#fff;--ink:#1b1f24;--soft:#5b6570;--rule:#dfe3e6;--own:#b4470b;--tint:#fdf1e7;
--warn:#6b4300;--warnpaper:#fff3d6;--s0:#0b6bcb;--s1:#c2500a;--s2:#0b7a53;--s3:#8a3fb5}
@media (prefers-color-scheme:dark){:root{--paper:#111417;--card:#191d21;--ink:#e7eaed;--soft:#9aa5af;--rule:#2d343a;
--own:#ffa25c;--tint:#2b2118;--warn:#ffd98a;--warnpaper:#33280f;--s0:#62b0ff;--s1:#ff9b52;--s2:#52c79a;--s3:#c995ee}}
*{box-sizing:border-box}
html{scroll-behavior:smooth}
body{margin:0;background:var(--paper);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
.banner{margin:0;padding:.45rem 1rem;text-align:center;font-weight:600;font-size:.9rem;color:var(--warn);
background:var(--warnpaper)}
header,main,footer{max-width:1180px;margin:0 auto;padding:0 1.5rem}
h1{margin:2.2rem 0 .4rem;font-size:2rem;line-height:1.2;letter-spacing:-.015em}
h2{margin:2.6rem 0 1rem;padding-top:1.1rem;border-top:1px solid var(--rule);font-size:1.4rem}
main section:first-child h2{margin-top:1.4rem}
h3{margin:2rem 0 .6rem;font-size:1.08rem}
.intro{max-width:52rem;margin:.2rem 0 1rem;color:var(--soft);font-size:1.06rem}
nav{display:flex;flex-wrap:wrap;gap:.4rem 1.4rem;font-size:.95rem}
nav a{color:var(--s0);text-decoration:none}nav a:hover{text-decoration:underline}
.note,.caption{max-width:52rem;margin:.5rem 0;color:var(--soft);font-size:.9rem}
.caption em{font-style:normal;font-weight:600;color:var(--own)}
.tiles{display:flex;flex-wrap:wrap;gap:.9rem;margin:0 0 1.4rem}
.tiles div{flex:1 1 11rem;padding:.9rem 1.1rem;border:1px solid var(--rule);border-radius:.6rem;background:var(--card)}
.tiles dt{color:var(--soft);font-size:.87rem}
.tiles dd{margin:.1rem 0 0;font-size:1.75rem;font-weight:650;line-height:1.25;font-variant-numeric:tabular-nums}
.tiles small{display:block;color:var(--soft);font-size:.87rem;font-weight:400}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-size:.93rem;font-variant-numeric:tabular-nums}
th,td{padding:.42rem .9rem;border-bottom:1px solid var(--rule);text-align:right;white-space:nowrap}
th:first-child{padding-left:.6rem;text-align:left}
thead th{border-bottom:2px solid var(--rule);color:var(--soft);font-weight:600}
tbody th{font-weight:500}
td span{color:var(--soft);font-size:.86em;font-weight:400}
td.best{font-weight:700}
tr.own{background:var(--tint)}tr.own th{color:var(--own);font-weight:700}
.settings th,.settings td{text-align:left;white-space:normal;overflow-wrap:anywhere;vertical-align:top}
.settings th{white-space:nowrap}
code{font:.9em ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
.legend{display:flex;flex-wrap:wrap;gap:.4rem 1.6rem;margin:.8rem 0;color:var(--soft);font-size:.88rem}
.legend i{display:inline-block;width:1.7rem;height:.75rem;margin-right:.5rem;vertical-align:-.06rem}
.ramp{width:5.5rem!important;border-radius:.2rem;
background:linear-gradient(90deg,#3c3ce6,#2882ff,#5ac8ff,#222 48%,#222 52%,#ffb02e,#ff5c14,#e6141e)}
.solid,.dash{height:0!important;margin-bottom:.28rem}
.solid{border-top:3px solid #e0b800}.dash{border-top:3px dashed #00b8d4}
article{margin:0 0 1.1rem;padding:1rem 1.1rem;border:1px solid var(--rule);border-radius:.6rem;background:var(--card)}
article .caption{display:flex;flex-wrap:wrap;align-items:baseline;gap:.1rem .8rem;margin:0 0 .6rem;max-width:none}
article .caption b{color:var(--ink);font-size:1rem}
.tiles-row{display:grid;grid-template-columns:repeat(auto-fit,minmax(180px,1fr));gap:.7rem}
figure{margin:0;max-width:320px}
.frame{position:relative;background:#000;border-radius:.35rem;overflow:hidden;line-height:0}
.frame img{width:100%;height:auto}
.badge{position:absolute;left:.45rem;bottom:.45rem;padding:.12rem .5rem;border-radius:1rem;background:rgba(0,0,0,.72);
color:#ffd98a;font-size:.74rem;font-weight:600;line-height:1.4;letter-spacing:.03em}
figcaption{padding-top:.35rem;color:var(--soft);font-size:.87rem;line-height:1.3}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(280px,1fr));gap:1rem}
.chart{display:block;width:100%;max-width:420px;padding:.5rem;border:1px solid var(--rule);border-radius:.6rem;
background:var(--card);font-size:11px;fill:var(--soft)}
.chart.wide{max-width:640px;margin:.8rem 0;font-size:12px}
.chart .name{fill:var(--ink);font-weight:600;font-size:12px}
.axis,.grid{fill:none;stroke:var(--rule)}
.line{fill:none;stroke-width:1.6;stroke-linejoin:round}
.line.s0{stroke:var(--s0)}.line.s1{stroke:var(--s1)}.line.s2{stroke:var(--s2)}.line.s3{stroke:var(--s3)}
.dot.s0,tspan.s0{fill:var(--s0)}.dot.s1,tspan.s1{fill:var(--s1)}.dot.s2,tspan.s2{fill:var(--s2)}
.dot.s3,tspan.s3{fill:var(--s3)}
.row{fill:var(--ink)}.row.own{fill:var(--own);font-weight:700}
.whisker{stroke:var(--soft);stroke-width:2}.point{fill:var(--soft)}
.whisker.own{stroke:var(--own);stroke-width:2.5}.point.own{fill:var(--own)}
footer{margin:3rem auto 2rem;color:var(--soft);font-size:.87rem}
footer::before{content:"";display:block;margin-bottom:1rem;border-top:1px solid var(--rule)}
@media print{body{background:#fff}nav{display:none}article,.chart,tr{break-inside:avoid}}
"""
