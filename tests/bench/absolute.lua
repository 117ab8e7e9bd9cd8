-- wrk asks for the absolute-form target in BENCH_TARGET (RFC 9112 section 3.2.2), as clients of a
-- forward proxy do; wrk itself only knows origin-form.
wrk.path = os.getenv("BENCH_TARGET")
