%% Plays stories on a real OTP supervisor: the peer of steward/tests/parity.
%%
%% Reads one story a line from stdin, an Erlang term: {Number, Tree, Ops}. Answers each with a line:
%% its number, then for the start and for each op a word "LOG/ALIVE": starts (+x, failed ones too) and
%% stops (-x) in the order in which they happened, then the wards that live after it, and a "!" if the
%% outermost supervisor is gone. Ends at the end of its input.
%%
%%     erl -noshell -eval '{ok, M, B} = compile:file("wardkeep_peer.erl", [binary]), code:load_binary(M, "", B), M:main()'
-module(wardkeep_peer).
-behaviour(supervisor).
-export([main/0, init/1, start_ward/2, ward/2]).

-define(IN_FLIGHT, 32).

main() ->
    %% Crash reports are what the stories are made of.
    ok = logger:set_primary_config(level, none),
    ok = io:setopts(standard_io, [binary]),
    read(0),
    halt(0).

read(?IN_FLIGHT) ->
    read(finished(?IN_FLIGHT));
read(Playing) ->
    case io:get_line("") of
        eof ->
            drain(Playing);
        Line ->
            {ok, Tokens, _} = erl_scan:string(binary_to_list(Line)),
            {ok, Story} = erl_parse:parse_term(Tokens),
            spawn_monitor(fun() -> play(Story) end),
            read(Playing + 1)
    end.

drain(0) -> ok;
drain(Playing) -> drain(finished(Playing)).

finished(Playing) ->
    receive
        {'DOWN', _, process, _, normal} -> Playing - 1;
        {'DOWN', _, process, _, Why} -> io:format("a story broke off: ~0p~n", [Why]), halt(1)
    end.

%% ---- one story

play({Number, Tree, Ops}) ->
    process_flag(trap_exit, true),
    Book = ets:new(book, [ordered_set, public]),
    {ok, Root} = supervisor:start_link(?MODULE, {Book, Tree}),
    Words = [settle(Book, Root) | [begin op(Op, Book), settle(Book, Root) end || Op <- Ops]],
    io:put_chars([integer_to_list(Number), [[" ", Word] || Word <- Words], "\n"]),
    exit(Root, shutdown),
    receive {'EXIT', Root, _} -> ok end.

op({exit, Ward, Reason, Fails}, Book) ->
    ets:insert(Book, [{{fails, Failing}, Times} || {Failing, Times} <- Fails]),
    {Pid, Mon} = monitored(Ward, Book),
    case Reason of
        kill -> exit(Pid, kill);
        _ -> Pid ! {die, Reason}
    end,
    receive {'DOWN', Mon, process, Pid, _} -> ok end;
op({meanwhile, Ward, Times, What}, Book) ->
    ets:insert(Book, {{meanwhile, Ward}, What}),
    op({exit, Ward, crash, [{Ward, Times}]}, Book);
op({exits, Group, Wards}, Book) ->
    %% Both are dead before their supervisor hears of either.
    [{_, Sup}] = ets:lookup(Book, {sup, Group}),
    ok = sys:suspend(Sup),
    [begin
         {Pid, Mon} = monitored(Ward, Book),
         Pid ! {die, crash},
         receive {'DOWN', Mon, process, Pid, _} -> ok end,
         await_exit(Pid, Sup)
     end || Ward <- Wards],
    ok = sys:resume(Sup);
op({stop, Group, Ward}, Book) ->
    ok = supervisor:terminate_child(sup(Group, Book), Ward);
op({delete, Group, Ward}, Book) ->
    ok = supervisor:delete_child(sup(Group, Book), Ward);
op({start, Group, Ward}, Book) ->
    {ok, _} = supervisor:restart_child(sup(Group, Book), Ward);
op({join, Group, Ward}, Book) ->
    {ok, _} = supervisor:start_child(sup(Group, Book), spec(Book, Ward)).

monitored(Ward, Book) ->
    [{_, Pid}] = ets:lookup(Book, {pid, Ward}),
    {Pid, monitor(process, Pid)}.

%% Until the end of a process is among what its supervisor has yet to read.
await_exit(Pid, Sup) ->
    {messages, Messages} = process_info(Sup, messages),
    case [exit || {'EXIT', From, _} <- Messages, From =:= Pid] of
        [] -> erlang:yield(), await_exit(Pid, Sup);
        _ -> ok
    end.

sup(Group, Book) ->
    [{_, Sup}] = ets:lookup(Book, {sup, Group}),
    Sup.

%% Waits until nothing is left to be done, and says what was.
settle(Book, Root) ->
    case is_quiet(Root) orelse not is_process_alive(Root) of
        true -> word(Book, Root);
        false -> erlang:yield(), settle(Book, Root)
    end.

%% Whatever a supervisor has yet to deal with shows: as a child that is dead, as one that is to be
%% restarted, or in that the supervisor does not answer before it is done.
is_quiet(Sup) ->
    try
        lists:all(fun is_settled/1, supervisor:which_children(Sup))
    catch
        exit:_ -> false
    end.

is_settled({_, restarting, _, _}) -> false;
is_settled({_, undefined, _, _}) -> true;
is_settled({_, Pid, worker, _}) -> is_process_alive(Pid);
is_settled({_, Pid, supervisor, _}) -> is_quiet(Pid).

word(Book, Root) ->
    Log = ets:select(Book, [{{{log, '_'}, '$1'}, [], ['$1']}]),
    Alive = [atom_to_list(Ward) || [Ward, Pid] <- ets:match(Book, {{pid, '$1'}, '$2'}), is_process_alive(Pid)],
    ets:match_delete(Book, {{log, '_'}, '_'}),
    [ets:match_delete(Book, {{Left, '_'}, '_'}) || Left <- [fails, meanwhile]],
    [Log, "/", lists:sort(Alive), ["!" || not is_process_alive(Root)]].

%% ---- supervisors and wards

init({Book, {group, Id, Strategy, Intensity, Shutdown, _, _, Members}}) ->
    ets:insert(Book, {{sup, Id}, self()}),
    %% A group that begins anew has nothing that fails to start: OTP would let all of it fail then.
    [ets:delete(Book, {Left, element(2, Member)}) || Member <- Members, Left <- [fails, meanwhile]],
    Flags = #{strategy => Strategy, intensity => Intensity, period => 3600, auto_shutdown => Shutdown},
    {ok, {Flags, [spec(Book, Member) || Member <- Members]}}.

spec(Book, {ward, Id, Restart, Significant}) ->
    #{id => Id, start => {?MODULE, start_ward, [Book, Id]}, restart => Restart, significant => Significant};
spec(Book, {group, Id, _, _, _, Restart, Significant, _} = Group) ->
    #{id => Id, start => {supervisor, start_link, [?MODULE, {Book, Group}]}, restart => Restart,
      significant => Significant, type => supervisor}.

start_ward(Book, Id) ->
    log(Book, $+, Id),
    case ets:update_counter(Book, {fails, Id}, {2, -1, -1, -1}, {{fails, Id}, 0}) of
        -1 ->
            proc_lib:start_link(?MODULE, ward, [Book, Id]);
        _ ->
            [meanwhile(What, Book) || {_, What} <- ets:take(Book, {meanwhile, Id})],
            {error, broken}
    end.

%% In the middle of a start, so on the supervisor: what comes now waits in its mailbox before the second
%% attempt that it is going to send itself.
meanwhile({stop, _, Ward}, _) ->
    _ = gen_server:send_request(self(), {terminate_child, Ward});
meanwhile({join, _, Ward}, Book) ->
    _ = gen_server:send_request(self(), {start_child, spec(Book, Ward)});
meanwhile({exit, Ward, kill, []}, Book) ->
    [{_, Pid}] = ets:lookup(Book, {pid, Ward}),
    case is_process_alive(Pid) of
        true ->
            exit(Pid, kill),
            await_exit(Pid, self());
        false ->
            ok
    end.

ward(Book, Id) ->
    process_flag(trap_exit, true),
    ets:insert(Book, {{pid, Id}, self()}),
    proc_lib:init_ack({ok, self()}),
    receive
        {die, Reason} -> exit(Reason);
        {'EXIT', _, Reason} -> log(Book, $-, Id), exit(Reason)
    end.

%% In the order of causes, whichever process says it.
log(Book, Sign, Id) ->
    ets:insert(Book, {{log, erlang:unique_integer([monotonic])}, [Sign | atom_to_list(Id)]}).
