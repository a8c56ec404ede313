#!/usr/bin/env escript
%% What Erlang/OTP's own supervisor does, for the tables of `cargo measure`.
%%
%%   peer.escript version
%%   peer.escript memory N       bytes: of all memory with N supervised children, each with a timer
%%   peer.escript heal N         microseconds from crash to running again: p50 and p99 of N
-module(wardkeep_bench_peer).
-mode(compile).
-behaviour(supervisor).
-export([main/1, init/1, idle/0, idle/1, crashing/1, crashing/2]).

main(["version"]) ->
    io:format("~s~n", [erlang:system_info(otp_release)]);
main(["memory", N]) ->
    {ok, Supervisor} = supervisor:start_link(?MODULE, {simple_one_for_one, idle, []}),
    Count = list_to_integer(N),
    [{ok, _} = supervisor:start_child(Supervisor, []) || _ <- lists:seq(1, Count)],
    timer:sleep(1500),
    io:format("~b~n", [erlang:memory(total)]);
main(["heal", N]) ->
    logger:set_primary_config(level, none),
    {ok, _} = supervisor:start_link(?MODULE, {one_for_one, crashing, [self()]}),
    _ = began(),
    Took = lists:sort([crash() || _ <- lists:seq(1, list_to_integer(N))]),
    At = fun(Share) -> lists:nth(max(1, trunc(length(Took) * Share)), Took) / 1000 end,
    io:format("~f ~f~n", [At(0.5), At(0.99)]).

init({Strategy, Function, Args}) ->
    Child = #{id => child, start => {?MODULE, Function, Args}},
    {ok, {#{strategy => Strategy, intensity => 1000000, period => 1}, [Child]}}.

idle() ->
    proc_lib:start_link(?MODULE, idle, [self()]).

idle(Parent) ->
    proc_lib:init_ack(Parent, {ok, self()}),
    tick().

tick() ->
    receive stop -> ok after 1000 -> tick() end.

crashing(Main) ->
    proc_lib:start_link(?MODULE, crashing, [self(), Main]).

crashing(Parent, Main) ->
    Main ! {began, self(), erlang:monotonic_time(nanosecond)},
    proc_lib:init_ack(Parent, {ok, self()}),
    receive
        crash ->
            Main ! {crashed, erlang:monotonic_time(nanosecond)},
            error(boom)
    end.

began() ->
    receive {began, Pid, At} -> put(child, Pid), At end.

crash() ->
    timer:sleep(1),
    get(child) ! crash,
    receive {crashed, Crashed} -> began() - Crashed end.
