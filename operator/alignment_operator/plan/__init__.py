"""Planning: `make_plan(observed, now) -> Plan`. Pure; one file per question."""
